#include "tools/cmd/generate_output.h"
#include "tools/cli/json_lines.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

static int no_memory(struct sl_err *err)
{
    return sl_err_set(err, -ENOMEM, "text: out of memory");
}

static int flush(struct sl_err *err)
{
    if (fflush(stdout) != 0)
        return sl_err_set(err, -errno, "cannot write the text: %s", sl_strerror(errno));
    return 0;
}

const char *sl_finish_name(enum sl_finish finish)
{
    switch (finish) {
    case SL_FINISH_END_OF_TEXT:
        return "end_of_text";
    case SL_FINISH_STOP_STRING:
        return "stop_string";
    case SL_FINISH_TOKENS_MAX:
        return "length";
    case SL_FINISH_CONTEXT:
        return "context";
    case SL_FINISH_INTERRUPTED:
        return "interrupted";
    case SL_FINISH_NONE:
        break;
    }
    return "none";
}

/* ---- tokens ------------------------------------------------------------------------------------
 */

/* Makes a JSON string of one token's text; bytes that are no character on their own become U+FFFD.
 * The caller drops the reference. Returns NULL when out of memory. */
static json_t *token_string(const struct sl_generate_output *output, uint32_t id)
{
    size_t length = 0;
    char *text = NULL;
    FILE *stream = open_memstream(&text, &length);
    json_t *string = NULL;
    size_t n;
    const char *piece;

    if (!stream)
        return NULL;
    piece = sl_detokenizer_push(output->token_text, id, &n);
    fwrite(piece, 1, n, stream);
    piece = sl_detokenizer_flush(output->token_text, &n);
    fwrite(piece, 1, n, stream);
    if (fclose(stream) == 0)
        string = json_stringn(text, length);
    free(text);
    return string;
}

static void print_token(const struct sl_generate_output *output, uint32_t id, double logprob,
                        const char *separator)
{
    json_t *string = token_string(output, id);

    printf("%s%.6f\t%u\t", separator, logprob, id);
    if (string)
        json_dumpf(string, stdout, JSON_ENCODE_ANY);
    json_decref(string);
}

static json_t *token_object(const struct sl_generate_output *output, uint32_t id, double logprob)
{
    return json_pack("{s:I, s:o, s:f}", "id", (json_int_t)id, "token", token_string(output, id),
                     "logprob", logprob);
}

static int show_token(struct sl_generate_output *output, const struct sl_generated *token,
                      struct sl_err *err)
{
    json_t *object, *top;

    if (!output->json) {
        print_token(output, token->id, token->logprob, "");
        for (uint32_t i = 0; i < token->n_top; i++)
            print_token(output, token->top_ids[i], token->top_logprobs[i], "\t");
        putchar('\n');
        return flush(err);
    }
    object = token_object(output, token->id, token->logprob);
    top = json_array();
    for (uint32_t i = 0; i < token->n_top; i++)
        json_array_append_new(top, token_object(output, token->top_ids[i], token->top_logprobs[i]));
    if (token->n_top > 0)
        json_object_set(object, "top", top);
    json_decref(top);
    return json_array_append_new(output->logprobs, object) < 0 ? no_memory(err) : 0;
}

/* ---- text --------------------------------------------------------------------------------------
 */

static int show_text(struct sl_generate_output *output, const char *text, size_t length,
                     struct sl_err *err)
{
    if (!output->json && output->with_logprobs) /* its tokens have been shown */
        return 0;
    if (fwrite(text, 1, length, output->json ? output->text_stream : stdout) != length)
        return output->json ? no_memory(err) : flush(err);
    return output->json ? 0 : flush(err);
}

int sl_generate_output_show(struct sl_generate_output *output,
                            const struct sl_generation_output *news, struct sl_err *err)
{
    int rc = 0;

    if (news->token && output->with_logprobs)
        rc = show_token(output, news->token, err);
    if (rc == 0 && news->length > 0)
        rc = show_text(output, news->text, news->length, err);
    return rc;
}

int sl_generate_output_init(struct sl_generate_output *output,
                            const struct sl_generation_options *options,
                            const struct sl_tokenizer *tok, bool json, struct sl_err *err)
{
    output->json = json;
    output->with_logprobs = options->with_logprobs;
    output->tok = tok;
    return sl_detokenizer_create(&output->token_text, tok, true, err);
}

void sl_generate_output_fini(struct sl_generate_output *output)
{
    if (output->text_stream)
        fclose(output->text_stream);
    free(output->text);
    json_decref(output->logprobs);
    sl_detokenizer_destroy(output->token_text);
}

int sl_generate_output_begin(struct sl_generate_output *output, struct sl_err *err)
{
    if (!output->json)
        return 0;
    output->logprobs = json_array();
    output->text_stream = open_memstream(&output->text, &output->text_length);
    return output->logprobs && output->text_stream ? 0 : no_memory(err);
}

static int print_object(struct sl_generate_output *output, const struct sl_generation *generation,
                        uint32_t n_prompt_tokens, struct sl_err *err)
{
    const char *stop_string = sl_generation_stop_string(generation);
    json_t *object;

    object = json_pack("{s:s%, s:s, s:I, s:I}", "text", output->text, output->text_length, "stop",
                       sl_finish_name(sl_generation_finish(generation)), "prompt_tokens",
                       (json_int_t)n_prompt_tokens, "tokens",
                       (json_int_t)sl_generation_token_count(generation));
    if (stop_string) /* a stop string that is no UTF-8 can never have come */
        json_object_set_new(object, "stop_string", json_string(stop_string));
    if (output->with_logprobs)
        json_object_set(object, "logprobs", output->logprobs);
    if (!object)
        return no_memory(err);
    sl_json_line_print(object);
    return flush(err);
}

int sl_generate_output_end(struct sl_generate_output *output,
                           const struct sl_generation *generation, uint32_t n_prompt_tokens,
                           struct sl_err *err)
{
    int rc;

    if (!output->json) {
        if (!output->with_logprobs)
            putchar('\n');
        return flush(err);
    }
    rc = fclose(output->text_stream) == 0 ? 0 : no_memory(err);
    output->text_stream = NULL;
    if (rc == 0)
        rc = print_object(output, generation, n_prompt_tokens, err);
    free(output->text);
    output->text = NULL;
    json_decref(output->logprobs);
    output->logprobs = NULL;
    return rc;
}
