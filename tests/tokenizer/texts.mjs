// The texts that are compared with the reference; tests/test_splitter.c makes the same ones.
import { classRanges } from './unicode_classes.mjs';

const between = ['a', 'b1', '2 ', ' !', 'a\n', '\n', '', '中', 'あ・', ' ', '!', '\u0301  ', '.',
    '.\r\n \t', 'x 1234', '5'];
const scraps = ['1234', ' ', '  ', '\n', '\r\n', '\t', 'a', "'s", '!', '?\n', '中文', 'あ', '・',
    '\u00a0', '\u3000', '\u180e'];

const isSurrogate = (c) => c >= 0xd800 && c <= 0xdfff;

// blockTexts(first, n): one text for each of n code points, which stands in it in many contexts.
// randomTexts(first, n): the texts first to first + n - 1 of an endless row, each of runs of
// neighbouring characters from all of Unicode and of scraps.
export async function textsOf(nodeModules) {
    const ranges = await classRanges(nodeModules);

    function randomText(index) {
        let state = Math.imul(index + 1, 2654435761) >>> 0;
        const next = (n) => {
            state ^= state << 13;
            state ^= state >>> 17;
            state ^= state << 5;
            state >>>= 0;
            return state % n;
        };
        let text = '';

        for (let runs = 1 + next(8); runs > 0; runs--) {
            if (next(4) === 0) {
                text += scraps[next(scraps.length)];
                continue;
            }
            const base = next(ranges.length - 5);
            for (let n = 1 + next(6); n > 0; n--) {
                const i = base + next(5);
                const first = ranges[i] >>> 3;
                const c = first + next((ranges[i + 1] >>> 3) - first);
                text += isSurrogate(c) ? 'a' : String.fromCodePoint(c);
            }
        }
        return text;
    }

    const rowOf = (first, n, text) => Array.from({ length: n }, (_, i) => text(first + i));

    return {
        blockTexts: (first, n) => rowOf(first, n, (c) =>
            isSurrogate(c) ? '' : between.join(String.fromCodePoint(c))),
        randomTexts: (first, n) => rowOf(first, n, randomText),
    };
}
