/* A line of a batch's input: a request, and the name under which its result is found.
 *
 *     {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {...}} */
#ifndef SL_DAEMON_BATCH_BATCH_LINE_H
#define SL_DAEMON_BATCH_BATCH_LINE_H

#include <stddef.h>

#include "daemon/answer/answer.h"

/* The longest line, as the server's largest body. */
#define SL_BATCH_LINE_BYTES_MAX (UINT64_C(64) << 20)

/* The longest custom_id. */
#define SL_BATCH_ID_BYTES_MAX 512u

/* Why a line is no request, in the words that OpenAI's batches have for it. */
struct sl_batch_fault {
    uint32_t line_number; /* from 1; 0: the file as a whole */
    char code[48];        /* such as "invalid_json_line" */
    char param[72];       /* the field; "" if it is none's fault */
    char message[SL_REFUSAL_MESSAGE_BYTES];
};

/* Returns whether batches take requests of this path, such as "/v1/chat/completions". */
bool sl_batch_speaks(const char *url);

/* Reads a line, without its end, into a zeroed answer: its request with the token ids and, where
 * the body has none, a seed that custom_id tells; its identity, which custom_id tells as well. Each
 * line is to be of the `endpoint`, if that is not NULL.
 *
 * Returns 0, or -1 with the fault, whose line_number is left alone. Either way the caller calls
 * sl_answer_fini() and frees *ret_custom_id, which is NULL where the line has none. */
int sl_batch_line_read(struct sl_answer *answer, const struct sl_answer_model *model,
                       const char *endpoint, const char *line, size_t length, char **ret_custom_id,
                       struct sl_batch_fault *fault);

/* Adds the line of a result, "\n" included: of an answer that has ended well, or else of an error.
 */
void sl_batch_line_write(const char *custom_id, const struct sl_answer *answer,
                         struct sl_bytes *out);
void sl_batch_line_write_error(const char *custom_id, const char *code, const char *message,
                               struct sl_bytes *out);

#endif
