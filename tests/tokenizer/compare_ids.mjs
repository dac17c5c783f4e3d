// Compares token ids: what `sluice tokenize` and the tokenizers package of npm make of 100,000
// random texts, by the same tokenizer.json.
//
//   node tests/tokenizer/compare_ids.mjs NODE_MODULES TOKENIZER_JSON SLUICE
import { createRequire } from 'node:module';
import { readFileSync } from 'node:fs';
import { resolve } from 'node:path';
import { spawnSync } from 'node:child_process';
import { textsOf } from './texts.mjs';

const [nodeModules, file, sluice] = process.argv.slice(2);
const require = createRequire(resolve(nodeModules, 'any.js'));
const { Tokenizer } = require(resolve(nodeModules, 'tokenizers'));
const tokenizer = Tokenizer.fromFile(file);
const added = JSON.parse(readFileSync(file)).added_tokens;
const texts = (await textsOf(nodeModules)).randomTexts(0, 100000);

// Every second text has an added token in it.
for (let i = 0; i < texts.length; i += 2)
    texts[i] += added[(i / 2) % added.length].content + texts[i + 1];

const ours = spawnSync(sluice, ['tokenize', file, '--special', '--jsonl', '-'], {
    input: texts.map((text) => `${JSON.stringify(text)}\n`).join(''),
    maxBuffer: 1 << 30,
    stdio: ['pipe', 'pipe', 'inherit'],
}).stdout.toString().split('\n');
const encodings = await tokenizer.encodeBatch(texts, { addSpecialTokens: false });
let nDiffer = 0;

encodings.forEach((encoding, i) => {
    const expected = `[${encoding.getIds().join(', ')}]`;
    if (ours[i] !== expected && nDiffer++ < 10)
        console.log(`${JSON.stringify(texts[i])}: ${ours[i]}, expected ${expected}`);
});
console.log(`${texts.length} texts, ${nDiffer} with other ids`);
process.exitCode = nDiffer ? 1 : 0;
