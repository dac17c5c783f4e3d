#include "daemon/answer/answer.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/assert.h"
#include "core/base/random.h"

void sl_answer_init(struct sl_answer *a, const struct sl_answer_model *model,
                    const struct sl_protocol *protocol)
{
    a->model = model;
    a->protocol = protocol;
    a->identity.model = model->names[0];
    a->identity.tok = model->tok;
}

void sl_answer_fini(struct sl_answer *a)
{
    for (uint32_t i = 0; a->choices && i < a->ticket.n_texts; i++)
        sl_chat_parser_destroy(a->choices[i].parser);
    free(a->choices);
    if (a->reply)
        a->protocol->destroy(a->reply);
    sl_ticket_fini(&a->ticket);
    sl_prompt_ids_fini(&a->ids);
    sl_request_fini(&a->request);
    sl_bytes_fini(&a->news);
    sl_bytes_fini(&a->out);
}

/* ---- events ------------------------------------------------------------------------------------
 */

void sl_answer_say(struct sl_answer *a, const struct sl_reply_event *event)
{
    a->protocol->write(a->reply, event, &a->out);
}

static void say_text(struct sl_answer_choice *choice, enum sl_reply_kind kind, const char *text,
                     size_t length)
{
    const struct sl_reply_event event = {
        .kind = kind, .choice_index = choice->index, .text = text, .length = length};

    if (length > 0)
        sl_answer_say(choice->answer, &event);
}

/* The answer goes through the stop strings; reasoning and calls do not. */
static void take_answer(struct sl_answer_choice *choice, const char *text, size_t length)
{
    struct sl_answer *a = choice->answer;
    char shown[4096 + SL_STOP_STRING_BYTES_MAX];

    if (a->request.stops.n_strings == 0) {
        say_text(choice, SL_REPLY_CONTENT, text, length);
        return;
    }
    while (length > 0 && !choice->stop_string) {
        const size_t part = length < 4096 ? length : 4096;
        const size_t n = sl_stop_matcher_push(&choice->matcher, &a->request.stops, text, part,
                                              shown, &choice->stop_string);

        say_text(choice, SL_REPLY_CONTENT, shown, n);
        text += part;
        length -= part;
    }
}

/* Clients send a call's id back with its result. A reply that is to be the same bytes each time
 * cannot draw one: its own name, and the call's place in it, tell it from others. */
static void name_call(const struct sl_answer_choice *choice, char *id, size_t size)
{
    const struct sl_reply_identity *identity = &choice->answer->identity;

    if (identity->is_repeatable)
        snprintf(id, size, "call_%s_%u_%u", identity->id, choice->index, choice->n_calls);
    else {
        memcpy(id, "call_", 5);
        sl_random_name(id + 5, 25);
    }
}

static void take_call(struct sl_answer_choice *choice, const struct sl_chat_event *call)
{
    struct sl_reply_event event = {.kind = SL_REPLY_CALL, .choice_index = choice->index};
    char id[64];

    name_call(choice, id, sizeof(id));
    event.call.id = id;
    event.call.name = call->name;
    event.call.index = choice->n_calls++;
    event.call.arguments = call->text;
    sl_answer_say(choice->answer, &event);
}

/* An sl_chat_event_fn. */
static void on_part(void *context, const struct sl_chat_event *event)
{
    struct sl_answer_choice *choice = context;

    if (choice->stop_string)
        return;
    choice->in_reasoning = event->part == SL_CHAT_PART_REASONING;
    if (event->part == SL_CHAT_PART_CALL)
        take_call(choice, event);
    else if (event->part == SL_CHAT_PART_ANSWER)
        take_answer(choice, event->text, event->length);
    else
        say_text(choice, SL_REPLY_REASONING, event->text, event->length);
}

static void fail(struct sl_answer *a, int status, const char *message, size_t length)
{
    const struct sl_reply_event event = {.kind = SL_REPLY_ERROR, .refusal = &a->refusal};

    if (a->has_ended)
        return;
    sl_refuse(&a->refusal, status, NULL, "%.*s", (int)length, message);
    a->has_ended = a->has_failed = true;
    sl_answer_say(a, &event);
}

static void finish(struct sl_answer_choice *choice, enum sl_finish reason, const char *stop_string)
{
    struct sl_reply_event event = {.kind = SL_REPLY_FINISH,
                                   .choice_index = choice->index,
                                   .finish = reason,
                                   .n_calls = choice->n_calls,
                                   .stop_string = stop_string};

    choice->has_ended = true;
    sl_answer_say(choice->answer, &event);
}

/* The reader has seen a stop string: it wants no more of the text. */
static void end_by_stop(struct sl_answer_choice *choice)
{
    struct sl_answer *a = choice->answer;

    finish(choice, SL_FINISH_STOP_STRING, choice->stop_string);
    atomic_store(&a->ticket.texts[choice->index].is_unwanted, true);
    a->needs_notice = true;
}

static void take_piece(struct sl_answer_choice *choice, const struct sl_news *news)
{
    struct sl_answer *a = choice->answer;
    struct sl_err err;

    if (news->has_token) {
        a->n_new_tokens++;
        a->n_reasoning_tokens += choice->in_reasoning;
        if (a->on_token)
            a->on_token(a->context, choice->index, &news->token);
    }
    if (news->has_logprobs) {
        const struct sl_reply_event event = {.kind = SL_REPLY_TOKEN,
                                             .choice_index = choice->index,
                                             .token = &news->token,
                                             .in_reasoning = choice->in_reasoning};

        sl_answer_say(a, &event);
    }
    if (!choice->parser)
        say_text(choice, SL_REPLY_CONTENT, news->text, news->length);
    else if (sl_chat_parser_push(choice->parser, news->text, news->length, &err) < 0)
        fail(a, 500, err.message, strlen(err.message));
    else if (sl_chat_parser_in_answer(choice->parser))
        choice->in_reasoning = false;
    if (choice->stop_string)
        end_by_stop(choice);
}

static void take_finish(struct sl_answer_choice *choice, const struct sl_news *news)
{
    char held[SL_STOP_STRING_BYTES_MAX];

    if (choice->parser) {
        sl_chat_parser_finish(choice->parser, NULL);
        if (choice->stop_string) {
            finish(choice, SL_FINISH_STOP_STRING, choice->stop_string);
            return;
        }
        say_text(choice, SL_REPLY_CONTENT, held, sl_stop_matcher_flush(&choice->matcher, held));
    }
    finish(choice, news->finish, news->stop_string);
}

/* The reader counts the tokens that it took; the worker may have made some more of a text that a
 * stop string ends. What a session knew of the prompt depends on who else was there. */
static void take_end(struct sl_answer *a, const struct sl_usage *usage)
{
    const struct sl_reply_event event = {.kind = SL_REPLY_END, .usage = &a->usage};

    a->usage = *usage;
    a->usage.n_new_tokens = a->n_new_tokens;
    a->usage.n_reasoning_tokens = a->n_reasoning_tokens;
    if (a->identity.is_repeatable)
        a->usage.n_cached_tokens = 0;
    a->has_ended = true;
    sl_answer_say(a, &event);
}

bool sl_answer_take_news(struct sl_answer *a)
{
    struct sl_news news;

    a->needs_notice = sl_ticket_take(&a->ticket, &a->news);
    for (size_t at = 0; !a->has_ended && sl_news_next(&a->news, &at, &news);) {
        struct sl_answer_choice *choice = &a->choices[news.choice_index];

        if (news.kind == SL_NEWS_END)
            take_end(a, &news.usage);
        else if (news.kind == SL_NEWS_FAILED)
            fail(a, news.status, news.text, news.length);
        else if (choice->has_ended)
            continue;
        else if (news.kind == SL_NEWS_PIECE)
            take_piece(choice, &news);
        else
            take_finish(choice, &news);
    }
    if (a->news.out_of_memory)
        fail(a, 500, "out of memory", strlen("out of memory"));
    return a->needs_notice;
}

/* ---- requests ----------------------------------------------------------------------------------
 */

static int no_memory(struct sl_refusal *refusal)
{
    return sl_refuse(refusal, 500, NULL, "out of memory");
}

/* Names that the model does not have may be meant for another one. */
static int check_model(struct sl_answer *a, struct sl_refusal *refusal)
{
    const struct sl_answer_model *model = a->model;

    if (!a->request.model)
        return 0;
    for (uint32_t i = 0; i < model->n_names; i++)
        if (strcmp(model->names[i], a->request.model) == 0) {
            a->identity.model = model->names[i];
            return 0;
        }
    sl_refuse(refusal, 404, "model", "there is no model \"%.100s\" here, but \"%s\"",
              a->request.model, model->names[0]);
    refusal->code = "model_not_found";
    return -1;
}

int sl_answer_read_object(struct sl_answer *a, json_t *body, struct sl_refusal *refusal)
{
    a->request.body = body;
    if (!json_is_object(body))
        return sl_refuse(refusal, 400, NULL, "the request's body is no JSON object");
    return a->protocol->read(&a->request, refusal) < 0 ? -1 : check_model(a, refusal);
}

int sl_answer_read(struct sl_answer *a, const char *body, size_t length, struct sl_refusal *refusal)
{
    struct sl_err err;
    json_t *object;
    int rc = sl_json_parse(&object, body, length, "the request's body", &err);

    if (rc < 0)
        return sl_refuse(refusal, rc == -ENOMEM ? 500 : 400, NULL, "%s", err.message);
    return sl_answer_read_object(a, object, refusal);
}

int sl_answer_make_ids(struct sl_answer *a, struct sl_refusal *refusal)
{
    const struct sl_answer_model *model = a->model;

    if (a->request.messages && !model->profile.is_chat)
        return sl_refuse(refusal, 400, "messages",
                         "this is a base model, which was never taught a conversation; "
                         "/v1/completions continues texts");
    a->request.chat.profile = model->profile.profile;
    if (sl_prompt_ids_make(&a->ids, &a->request, model->tok, model->config, refusal) < 0)
        return -1;
    for (uint32_t i = 0; i < a->ids.n; i++) {
        const size_t n_tokens = a->ids.lists[i].n;

        if (n_tokens < model->context_tokens)
            continue;
        sl_refuse(refusal, 400, a->request.messages ? "messages" : "prompt",
                  "the prompt has %zu tokens, but the context %u, with the answer", n_tokens,
                  model->context_tokens);
        refusal->code = "context_length_exceeded";
        return -1;
    }
    return 0;
}

/* ---- texts -------------------------------------------------------------------------------------
 */

static int make_text(struct sl_answer *a, uint32_t index, struct sl_refusal *refusal)
{
    const struct sl_answer_model *model = a->model;
    const struct sl_request *request = &a->request;
    const struct sl_token_list *list = &a->ids.lists[index / request->n];
    struct sl_text *text = &a->ticket.texts[index];
    struct sl_generation_options options = {
        .sampler = request->sampler,
        .rules = {.eos_token_id = model->config->eos_token_id,
                  .n_new_max = request->n_new_max,
                  .context_tokens = model->context_tokens},
        .with_logprobs = request->with_logprobs,
        .n_top_logprobs = request->n_top_logprobs,
    };
    struct sl_err err;
    int rc;

    if (!request->messages)
        options.rules.stops = request->stops;
    rc = sl_generation_create(&text->generation, &options, model->tok, model->config->vocab_size,
                              &err);
    if (rc < 0)
        return sl_refuse(refusal, rc == -ENOMEM ? 500 : 400, NULL, "%s", err.message);
    text->tokens = (const int32_t *)list->ids; /* below the vocabulary's size */
    text->n_tokens = (uint32_t)list->n;
    text->seed = request->sampler.seed + index;
    text->n_new_max = request->n_new_max;
    text->with_logprobs = request->with_logprobs;
    return 0;
}

/* Begins the reading of an answer; one that must be a call has begun in the prompt. */
static int make_choice(struct sl_answer *a, uint32_t index, struct sl_refusal *refusal)
{
    struct sl_answer_choice *choice = &a->choices[index];
    struct sl_bytes forced = {0};
    int rc = 0;

    choice->answer = a;
    choice->index = index;
    if (!a->request.messages)
        return 0;
    choice->in_reasoning = a->request.chat.thinking && !a->request.continues;
    if (sl_chat_parser_create(&choice->parser, choice->in_reasoning, on_part, choice, NULL) < 0)
        return no_memory(refusal);
    sl_forced_call_text(&a->request, &forced);
    if (forced.length > 0)
        rc = sl_chat_parser_push(choice->parser, forced.data, forced.length, NULL);
    rc = forced.out_of_memory || rc < 0 ? no_memory(refusal) : 0;
    sl_bytes_fini(&forced);
    return rc;
}

int sl_answer_make_texts(struct sl_answer *a, struct sl_refusal *refusal)
{
    const uint32_t n_texts = a->ids.n * a->request.n;

    sl_assert(n_texts >= 1 && n_texts <= SL_REQUEST_CHOICES_MAX);
    a->reply = a->protocol->create(&a->request, &a->identity);
    a->choices = calloc(n_texts, sizeof(*a->choices));
    if (!a->reply || !a->choices || sl_ticket_init(&a->ticket, n_texts) < 0)
        return no_memory(refusal);
    for (uint32_t i = 0; i < n_texts; i++)
        if (make_text(a, i, refusal) < 0 || make_choice(a, i, refusal) < 0)
            return -1;
    return 0;
}
