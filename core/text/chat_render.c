/* Rendering goes in three steps: messages become turns (a tool's answers join the user's turn), the
 * reasoning of earlier turns is dropped where the format wants that, and the turns are printed. */
#include "core/text/chat_render.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/assert.h"
#include "core/base/size.h"
#include "core/text/chat_format.h"
#include "core/text/chat_json.h"

enum role { SYSTEM, USER, ASSISTANT, TOOL, DEVELOPER, REMINDER, ROLES };

static const char *const role_names[ROLES] = {"system", "user",      "assistant",
                                              "tool",   "developer", "latest_reminder"};

/* The model can be asked for these beside an answer, each by a token of its own. */
static const struct {
    const char *name, *token;
} tasks[] = {
    {"action", SL_CHAT_ACTION}, {"query", "<｜query｜>"}, {"authority", "<｜authority｜>"},
    {"domain", "<｜domain｜>"}, {"title", "<｜title｜>"}, {"read_url", "<｜read_url｜>"},
};

/* A part of a user's turn: what the user wrote, or what a tool answered. */
struct block {
    const json_t *content; /* NULL: empty */
    const char *result_id; /* of the call that a tool answers; NULL: the user wrote it */
};

struct turn {
    enum role role;               /* not TOOL: its messages are blocks of a user's turn */
    const json_t *message;        /* that the turn was made of; the first, if of several */
    size_t message_index;         /* for errors */
    size_t first_block, n_blocks; /* of a user's turn */
    const char *task;             /* its token; NULL if there is none */
    bool without_end;             /* the turn stays open */
};

struct renderer {
    const struct sl_chat_options *options;
    struct sl_chat_prompt *prompt;
    struct turn *turns;
    struct block *blocks;
    size_t n_turns, n_blocks;
    bool keep_thinking;
    int64_t last_user; /* the last turn of a user or developer; -1 if there is none */
    struct sl_err *err;
};

const char *sl_chat_profile_name(enum sl_chat_profile profile)
{
    static const char *const names[SL_CHAT_PROFILES] = {
        [SL_CHAT_V4_PREVIEW] = "v4-preview",
        [SL_CHAT_V4_0731] = "v4-0731",
    };

    return names[profile];
}

int sl_chat_profile_find(enum sl_chat_profile *ret_profile, const char *name, struct sl_err *err)
{
    for (int i = 0; i < SL_CHAT_PROFILES; i++)
        if (strcmp(name, sl_chat_profile_name((enum sl_chat_profile)i)) == 0) {
            *ret_profile = (enum sl_chat_profile)i;
            return 0;
        }
    return sl_err_set(err, -EINVAL, "unknown chat profile \"%s\" (known: v4-preview, v4-0731)",
                      name);
}

/* ---- messages to turns -------------------------------------------------------------------------
 */

static int find_role(struct renderer *r, const json_t *message, size_t index, enum role *ret_role)
{
    const char *name = json_string_value(json_object_get(message, "role"));

    for (int i = 0; name && i < ROLES; i++)
        if (strcmp(name, role_names[i]) == 0) {
            *ret_role = (enum role)i;
            return 0;
        }
    if (!name)
        return sl_err_set(r->err, -SL_EFORMAT, "message %zu: \"role\" is missing", index);
    return sl_err_set(r->err, -SL_EFORMAT,
                      "message %zu: unknown role \"%s\" (known: system, user, assistant, tool, "
                      "developer, latest_reminder)",
                      index, name);
}

static int find_task(struct renderer *r, const json_t *message, size_t index, const char **ret_task)
{
    const json_t *task = json_object_get(message, "task");

    *ret_task = NULL;
    if (!task || json_is_null(task))
        return 0;
    for (size_t i = 0; json_is_string(task) && i < SL_ARRAY_LEN(tasks); i++)
        if (strcmp(json_string_value(task), tasks[i].name) == 0) {
            *ret_task = tasks[i].token;
            return 0;
        }
    return sl_err_set(r->err, -SL_EFORMAT,
                      "message %zu: unknown \"task\" (known: action, query, authority, domain, "
                      "title, read_url)",
                      index);
}

static void add_block(struct renderer *r, const json_t *message, bool result)
{
    const char *id = json_string_value(json_object_get(message, "tool_call_id"));
    const json_t *content = json_object_get(message, "content");

    r->blocks[r->n_blocks++] = (struct block){
        .content = json_is_null(content) ? NULL : content,
        .result_id = result ? (id ? id : "") : NULL,
    };
    r->turns[r->n_turns - 1].n_blocks++;
}

/* A tool's answer joins the user's turn before it, and so does a user's text, unless that turn asks
 * for a task. */
static int add_message(struct renderer *r, const json_t *message, size_t index)
{
    const struct turn *last = r->n_turns ? &r->turns[r->n_turns - 1] : NULL;
    struct turn turn = {.message = message, .message_index = index, .first_block = r->n_blocks};
    bool result;
    int rc;

    if ((rc = find_role(r, message, index, &turn.role)) < 0 ||
        (rc = find_task(r, message, index, &turn.task)) < 0)
        return rc;
    turn.without_end = json_is_true(json_object_get(message, "wo_eos")) ||
                       json_is_true(json_object_get(message, "prefix"));
    result = turn.role == TOOL;
    if (result)
        turn = (struct turn){.role = USER, .message_index = index, .first_block = r->n_blocks};
    if (turn.role != USER) {
        r->turns[r->n_turns++] = turn;
        return 0;
    }
    if (!last || last->role != USER || (!result && last->task))
        r->turns[r->n_turns++] = turn;
    add_block(r, message, result);
    return 0;
}

/* Maps the ids of calls to their places; the first that has an id keeps it. Returns a new object,
 * or NULL when out of memory. */
static json_t *map_calls(const json_t *calls)
{
    json_t *places = json_object();

    for (size_t i = 0; places && i < json_array_size(calls); i++) {
        const json_t *call = json_array_get(calls, i);
        const char *id = json_string_value(json_object_get(call, "id"));

        if (!id)
            id = json_string_value(json_object_get(json_object_get(call, "function"), "id"));
        if (!id || json_object_get(places, id))
            continue;
        if (json_object_set_new(places, id, json_integer((json_int_t)i)) < 0) {
            json_decref(places);
            return NULL;
        }
    }
    return places;
}

struct result {
    struct block block;
    json_int_t place; /* of its call; an unknown one counts as the first */
    size_t order;     /* in which it came */
};

static int compare_results(const void *a, const void *b)
{
    const struct result *left = a, *right = b;

    if (left->place != right->place)
        return left->place < right->place ? -1 : 1;
    return left->order < right->order ? -1 : 1;
}

/* Puts a turn's results into the order of the calls; texts stay where they are. `results` has room
 * for all of them. */
static void sort_results(struct renderer *r, const struct turn *turn, const json_t *places,
                         struct result *results)
{
    struct block *blocks = r->blocks + turn->first_block;
    size_t n = 0;

    for (size_t i = 0; i < turn->n_blocks; i++)
        if (blocks[i].result_id) {
            results[n] = (struct result){
                blocks[i], json_integer_value(json_object_get(places, blocks[i].result_id)), n};
            n++;
        }
    qsort(results, n, sizeof(*results), compare_results);
    for (size_t i = turn->n_blocks; i-- > 0;)
        if (blocks[i].result_id)
            blocks[i] = results[--n].block;
}

/* The results of a turn answer the last calls before it. */
static int sort_all_results(struct renderer *r)
{
    struct result *results = calloc(r->n_blocks + 1, sizeof(*results));
    const json_t *calls = NULL;
    json_t *places = NULL;
    bool is_done = results != NULL;

    for (size_t i = 0; is_done && i < r->n_turns; i++) {
        const json_t *own = json_object_get(r->turns[i].message, "tool_calls");

        if (r->turns[i].role == ASSISTANT && own && !json_is_null(own)) {
            calls = own;
            json_decref(places);
            places = NULL;
        } else if (r->turns[i].role == USER && r->turns[i].n_blocks > 1 &&
                   json_array_size(calls) > 0) {
            if (!places)
                places = map_calls(calls);
            is_done = places != NULL;
            if (is_done)
                sort_results(r, &r->turns[i], places, results);
        }
    }
    json_decref(places);
    free(results);
    return is_done ? 0 : sl_err_set(r->err, -ENOMEM, "messages: out of memory");
}

static int64_t find_last_user(const struct renderer *r)
{
    for (size_t i = r->n_turns; i-- > 0;)
        if (r->turns[i].role == USER || r->turns[i].role == DEVELOPER)
            return (int64_t)i;
    return -1;
}

static bool has_tools(const struct turn *turn)
{
    return turn->role != USER && json_array_size(json_object_get(turn->message, "tools")) > 0;
}

/* Where there are tools all reasoning stays. Else only the reasoning behind the last question is
 * printed, and a developer's turns before it go. */
static void drop_thinking(struct renderer *r)
{
    size_t n = 0;

    r->keep_thinking = r->options->keep_thinking;
    for (size_t i = 0; i < r->n_turns; i++)
        r->keep_thinking |= has_tools(&r->turns[i]);
    r->last_user = find_last_user(r);
    if (!r->options->thinking || r->keep_thinking)
        return;
    for (size_t i = 0; i < r->n_turns; i++)
        if ((int64_t)i >= r->last_user || r->turns[i].role != DEVELOPER)
            r->turns[n++] = r->turns[i];
    r->n_turns = n;
    r->last_user = find_last_user(r);
}

/* ---- printing ----------------------------------------------------------------------------------
 */

static void put(void *prompt, const char *bytes, size_t length)
{
    sl_chat_prompt_add(prompt, bytes, length);
}

static void put_text(struct renderer *r, const char *text)
{
    sl_chat_prompt_add(r->prompt, text, strlen(text));
}

static void put_string(struct renderer *r, const json_t *string)
{
    sl_chat_prompt_add(r->prompt, json_string_value(string), json_string_length(string));
}

static void put_control(struct renderer *r, const char *token)
{
    sl_chat_prompt_add_control(r->prompt, token);
}

static void put_format(struct renderer *r, const char *text)
{
    static const char *const tokens[] = {SL_CHAT_THINK, SL_CHAT_THINK_END, SL_CHAT_DSML, NULL};

    sl_chat_prompt_add_format(r->prompt, text, tokens);
}

/* Content is a string, or a list of parts: their texts are joined with `between`. A part of another
 * kind is named in a tool's result, and an error anywhere else. */
static int put_content(struct renderer *r, const json_t *content, const char *between, bool result,
                       size_t message_index)
{
    if (!content || json_is_null(content))
        return 0;
    if (json_is_string(content)) {
        put_string(r, content);
        return 0;
    }
    if (!json_is_array(content))
        return sl_err_set(r->err, -SL_EFORMAT,
                          "message %zu: \"content\" is neither text nor a list of parts",
                          message_index);
    for (size_t i = 0; i < json_array_size(content); i++) {
        const json_t *part = json_array_get(content, i);
        const char *type = json_string_value(json_object_get(part, "type"));
        const json_t *text = json_object_get(part, "text");

        if (i)
            put_text(r, between);
        if (type && strcmp(type, "text") == 0 && json_is_string(text)) {
            put_string(r, text);
        } else if (result && type) {
            put_text(r, "[Unsupported ");
            put_text(r, type);
            put_text(r, "]");
        } else {
            return sl_err_set(r->err, -SL_EFORMAT,
                              "message %zu: part %zu of \"content\" is of type \"%s\"; this model "
                              "reads text only",
                              message_index, i, type ? type : "");
        }
    }
    return 0;
}

static int put_tools(struct renderer *r, const struct turn *turn)
{
    const json_t *tools = json_object_get(turn->message, "tools");
    const json_t *format = json_object_get(turn->message, "response_format");

    if (json_array_size(tools) > 0) {
        put_text(r, "\n\n");
        put_format(r, SL_CHAT_TOOLS_BEFORE);
        for (size_t i = 0; i < json_array_size(tools); i++) {
            const json_t *function = json_object_get(json_array_get(tools, i), "function");

            if (!json_is_object(function))
                return sl_err_set(r->err, -SL_EFORMAT, "message %zu: tool %zu has no \"function\"",
                                  turn->message_index, i);
            if (i)
                put_text(r, "\n");
            sl_chat_json_print(function, put, r->prompt);
        }
        put_format(r, SL_CHAT_TOOLS_AFTER);
    }
    if (format && !json_is_null(format)) {
        put_text(r, "\n\n" SL_CHAT_RESPONSE_FORMAT);
        sl_chat_json_print(format, put, r->prompt);
    }
    return 0;
}

static int put_user(struct renderer *r, const struct turn *turn)
{
    int rc = 0;

    put_control(r, SL_CHAT_USER);
    for (size_t i = 0; i < turn->n_blocks && rc == 0; i++) {
        const struct block *block = &r->blocks[turn->first_block + i];

        if (i)
            put_text(r, "\n\n");
        if (block->result_id)
            put_text(r, SL_CHAT_RESULT);
        rc = put_content(r, block->content, block->result_id ? "\n\n" : "",
                         block->result_id != NULL, turn->message_index);
        if (block->result_id)
            put_text(r, SL_CHAT_RESULT_END);
    }
    return rc;
}

static void put_parameter(struct renderer *r, const char *name, const json_t *value)
{
    const bool string = json_is_string(value);

    put_format(r, SL_CHAT_PARAMETER);
    put_text(r, name);
    put_text(r, string ? "\" string=\"true\">" : "\" string=\"false\">");
    if (string)
        put_string(r, value);
    else
        sl_chat_json_print(value, put, r->prompt);
    put_format(r, SL_CHAT_PARAMETER_END);
}

/* Arguments are a JSON text, an object with the parameters. Other text is a parameter of its own,
 * which is called "arguments"; an object that is given as it is prints as its JSON there. */
static int put_arguments(struct renderer *r, const json_t *arguments, size_t message_index)
{
    json_t *parsed = NULL;
    const char *key, *between = "";
    json_t *value;
    int rc = 0;

    if (json_is_string(arguments))
        parsed = json_loadb(json_string_value(arguments), json_string_length(arguments),
                            JSON_DECODE_ANY, NULL);
    if (!parsed && arguments) {
        put_parameter(r, "arguments", arguments);
    } else if (json_is_object(parsed)) {
        json_object_foreach(parsed, key, value)
        {
            put_text(r, between);
            put_parameter(r, key, value);
            between = "\n";
        }
    } else if (parsed) {
        rc =
            sl_err_set(r->err, -SL_EFORMAT,
                       "message %zu: the arguments of a call are not a JSON object", message_index);
    }
    json_decref(parsed);
    return rc;
}

static int put_calls(struct renderer *r, const struct turn *turn)
{
    const json_t *calls = json_object_get(turn->message, "tool_calls");
    int rc = 0;

    if (json_array_size(calls) == 0)
        return 0;
    put_format(r, "\n\n" SL_CHAT_CALLS "\n");
    for (size_t i = 0; i < json_array_size(calls) && rc == 0; i++) {
        const json_t *function = json_object_get(json_array_get(calls, i), "function");
        const json_t *name = json_object_get(function, "name");

        if (!json_is_string(name))
            return sl_err_set(r->err, -SL_EFORMAT, "message %zu: call %zu has no function name",
                              turn->message_index, i);
        if (i)
            put_text(r, "\n");
        put_format(r, SL_CHAT_INVOKE);
        put_string(r, name);
        put_text(r, "\">\n");
        rc = put_arguments(r, json_object_get(function, "arguments"), turn->message_index);
        put_format(r, "\n" SL_CHAT_INVOKE_END);
    }
    put_format(r, "\n" SL_CHAT_CALLS_END);
    return rc;
}

static int put_assistant(struct renderer *r, size_t i)
{
    const struct turn *turn = &r->turns[i];
    const bool after_task = i > 0 && r->turns[i - 1].task;
    const json_t *reasoning = json_object_get(turn->message, "reasoning_content");
    int rc;

    if (r->options->thinking && !after_task && (r->keep_thinking || (int64_t)i > r->last_user)) {
        if (json_is_string(reasoning))
            put_string(r, reasoning);
        put_control(r, SL_CHAT_THINK_END);
    }
    rc = put_content(r, json_object_get(turn->message, "content"), "", false, turn->message_index);
    if (rc == 0)
        rc = put_calls(r, turn);
    if (!turn->without_end)
        put_control(r, SL_CHAT_EOS);
    return rc;
}

static int put_turn(struct renderer *r, size_t i)
{
    const struct turn *turn = &r->turns[i];
    const json_t *content = json_object_get(turn->message, "content");
    int rc;

    switch (turn->role) {
    case USER:
        return put_user(r, turn);
    case ASSISTANT:
        return put_assistant(r, i);
    case DEVELOPER:
        if (!json_is_string(content) || json_string_length(content) == 0)
            return sl_err_set(r->err, -SL_EFORMAT, "message %zu: a developer's message is empty",
                              turn->message_index);
        put_control(r, SL_CHAT_USER);
        break;
    case REMINDER:
        put_control(r, SL_CHAT_REMINDER);
        return put_content(r, content, "", false, turn->message_index);
    default:
        break;
    }
    rc = put_content(r, content, "", false, turn->message_index);
    return rc < 0 ? rc : put_tools(r, turn);
}

/* The answer begins behind a question, or behind the token of a task. */
static void put_transition(struct renderer *r, size_t i)
{
    const struct turn *turn = &r->turns[i];
    const struct turn *next = i + 1 < r->n_turns ? turn + 1 : NULL;
    const bool action = turn->task && strcmp(turn->task, SL_CHAT_ACTION) == 0;
    bool thinks = r->options->thinking;

    if (next && next->role != ASSISTANT && next->role != REMINDER)
        return;
    if (turn->task && !action) {
        put_control(r, turn->task);
        return;
    }
    if (!action && turn->role != USER && turn->role != DEVELOPER)
        return;
    if (!action)
        thinks = thinks && (r->keep_thinking || (int64_t)i >= r->last_user);
    put_control(r, SL_CHAT_ASSISTANT);
    put_control(r, thinks ? SL_CHAT_THINK : SL_CHAT_THINK_END);
    if (action)
        put_control(r, SL_CHAT_ACTION);
}

static int put_effort(struct renderer *r)
{
    const enum sl_chat_effort effort = r->options->effort;

    if (!r->options->thinking)
        return 0;
    if (r->options->profile == SL_CHAT_V4_PREVIEW) {
        if (effort == SL_CHAT_LOW)
            return sl_err_set(r->err, -SL_EFORMAT,
                              "this model knows the efforts high and max, not low");
        put_text(r, effort == SL_CHAT_MAX ? SL_CHAT_EFFORT_MAXIMUM : "");
    } else {
        put_text(r, effort == SL_CHAT_MAX    ? SL_CHAT_EFFORT_BEYOND
                    : effort == SL_CHAT_HIGH ? SL_CHAT_EFFORT_MAXIMUM
                                             : "");
    }
    return 0;
}

static int put_all(struct renderer *r)
{
    int rc = 0;

    if (!r->options->no_bos)
        put_control(r, SL_CHAT_BOS);
    if (r->n_turns > 0)
        rc = put_effort(r);
    for (size_t i = 0; i < r->n_turns && rc == 0; i++) {
        rc = put_turn(r, i);
        put_transition(r, i);
    }
    return rc;
}

int sl_chat_render(struct sl_chat_prompt *prompt, const json_t *messages,
                   const struct sl_chat_options *options, struct sl_err *err)
{
    const size_t n = json_array_size(messages);
    struct renderer r = {.options = options, .prompt = prompt, .err = err};
    int rc = 0;

    if (!json_is_array(messages))
        return sl_err_set(err, -SL_EFORMAT, "the messages are not a list");
    r.turns = calloc(n + 1, sizeof(*r.turns));
    r.blocks = calloc(n + 1, sizeof(*r.blocks));
    if (!r.turns || !r.blocks)
        rc = sl_err_set(err, -ENOMEM, "messages: out of memory");
    for (size_t i = 0; i < n && rc == 0; i++)
        rc = add_message(&r, json_array_get(messages, i), i);
    if (rc == 0)
        rc = sort_all_results(&r);
    if (rc == 0) {
        drop_thinking(&r);
        rc = put_all(&r);
    }
    if (rc == 0 && prompt->out_of_memory)
        rc = sl_err_set(err, -ENOMEM, "prompt: out of memory");
    free(r.turns);
    free(r.blocks);
    return rc;
}
