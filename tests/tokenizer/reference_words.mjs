// Cuts texts into words with the tokenizers package of npm and prints hashes of them, which
// tests/test_splitter.c compares with (tests/tokenizer/words.txt): one for each block of 4096 code
// points, one for each 1000 of 100,000 random texts. A hash is FNV-1a, a word's length in bytes at
// a time.
//
//   node tests/tokenizer/reference_words.mjs NODE_MODULES TOKENIZER_JSON
import { createRequire } from 'node:module';
import { resolve } from 'node:path';
import { textsOf } from './texts.mjs';

const [nodeModules, file] = process.argv.slice(2);
const require = createRequire(resolve(nodeModules, 'any.js'));
const { Tokenizer } = require(resolve(nodeModules, 'tokenizers'));
const splitter = Tokenizer.fromFile(file).getPreTokenizer();
const { blockTexts, randomTexts } = await textsOf(nodeModules);

function hashOf(texts) {
    let hash = 2166136261;

    for (const text of texts)
        // ByteLevel has made one character of each byte.
        for (const [word] of splitter.preTokenizeString(text))
            hash = Math.imul(hash ^ word.length, 16777619);
    return (hash >>> 0).toString(16).padStart(8, '0');
}

console.log('# Made by tests/tokenizer/reference_words.mjs; not edited by hand.');
for (let first = 0; first < 0x110000; first += 4096)
    console.log(`from U+${first.toString(16).padStart(6, '0')} ${hashOf(blockTexts(first, 4096))}`);
for (let first = 0; first < 100000; first += 1000)
    console.log(`random ${first} ${hashOf(randomTexts(first, 1000))}`);
