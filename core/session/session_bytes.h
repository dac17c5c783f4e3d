/* A session as bytes, for images on disk: chunks of what its tokens appended, and one mark.
 *
 *     tokens   0          a            b        mark
 *              ├─ chunk ──┼── chunk ───┼─ chunk ─┤
 *                                                └ the mark: rings as they were there
 *
 * A chunk from token `from` to token `to`, any two positions, depends on the model and on tokens 0
 * to `to` alone: not on the session, the steps or the machine. So sessions that begin alike share
 * chunks. It holds, layer by layer, without gaps:
 *
 *     entries    entry_bytes each: those that tokens from <= t < to complete, ascending
 *     keys       in CSA layers: the tiles of 16 that these entries' keys are in, ascending. The
 *                first may have begun in the chunk before, whose keys are in it as well; keys that
 *                are not complete are zero in the last one
 *
 * A mark holds four uint32_t: its number of tokens, how many of them the draft has seen, the
 * first of these that left an entry in its window, and 0. Then come, layer by layer and ring by
 * ring (enum sl_kv_part), the rows of the last tokens before it, ascending by position: as many as
 * the ring has, or fewer in a short sequence. The draft's layers come last, with those rows alone
 * that they have: so a session whose draft was not loaded can be read where it is, and the other
 * way round; the draft begins anew there.
 *
 * Token ids are in neither: whoever keeps the bytes keeps the ids. Numbers are little-endian,
 * values as the numerics store them in memory (docs/NUMERICS.md, core/kernels/r16.h): bytes are
 * good for the same model, numerics and layout alone, which is for their keeper to see to. So are
 * checksums: bytes that were altered may give other logits, though they harm nothing else.
 *
 * All are copies between steps, by the thread that the sessions belong to. */
#ifndef SL_SESSION_SESSION_BYTES_H
#define SL_SESSION_SESSION_BYTES_H

#include "core/session/session.h"

/* Bytes of a chunk, and the most that one of n_tokens can have, wherever it begins. */
uint64_t sl_chunk_bytes(const struct sl_kv_layout *layout, uint32_t from, uint32_t to);
uint64_t sl_chunk_bytes_max(const struct sl_kv_layout *layout, uint32_t n_tokens);

/* Writes the chunk's bytes; the session has seen `to` tokens or more. Of layers of the MTP block
 * that compress (no released model's does) entries that it has not seen are zero. Pages on disk are
 * read one by one, into one page of the pool's. Fails with -SL_EBUDGET where there is none, and as
 * sl_kv_pager_read(). */
int sl_session_export_chunk(const struct sl_session *session, uint32_t from, uint32_t to,
                            uint8_t *ret_bytes, struct sl_err *err);

/* Bytes of a mark, at most and of this one, and writes them. */
uint64_t sl_mark_bytes_max(const struct sl_kv_layout *layout);
uint64_t sl_mark_bytes(const struct sl_session *session, const struct sl_mark *mark);
void sl_session_export_mark(const struct sl_session *session, const struct sl_mark *mark,
                            uint8_t *ret_bytes);

/* The other way: begin(), all chunks up to n_tokens in order, then end() with the mark's bytes.
 * The session is empty before, and has seen `tokens` after; abandon() leaves it empty. Between
 * begin() and end() nothing else may be done with it.
 *
 * begin() fails as sl_kv_cache_grow() and with -SL_EBUDGET, and end() with -SL_ECORRUPT where the
 * bytes are no mark behind n_tokens tokens; the session is empty then. */
int sl_session_import_begin(struct sl_session *session, const int32_t *tokens, uint32_t n_tokens,
                            struct sl_err *err);
void sl_session_import_chunk(struct sl_session *session, uint32_t from, uint32_t to,
                             const uint8_t *bytes);
int sl_session_import_end(struct sl_session *session, uint32_t n_tokens, const uint8_t *bytes,
                          uint64_t size_bytes, struct sl_err *err);
void sl_session_import_abandon(struct sl_session *session);

#endif
