/* The words of V4's chat format: control tokens as the tokenizer spells them, and the texts that
 * the model was trained on. They are data of the format; no byte of them is ours to change. */
#ifndef SL_TEXT_CHAT_FORMAT_H
#define SL_TEXT_CHAT_FORMAT_H

#define SL_CHAT_BOS "<｜begin▁of▁sentence｜>"
#define SL_CHAT_EOS "<｜end▁of▁sentence｜>"
#define SL_CHAT_USER "<｜User｜>"
#define SL_CHAT_ASSISTANT "<｜Assistant｜>"
#define SL_CHAT_THINK "<think>"
#define SL_CHAT_THINK_END "</think>"
#define SL_CHAT_DSML "｜DSML｜"
#define SL_CHAT_REMINDER "<｜latest_reminder｜>"
#define SL_CHAT_ACTION "<｜action｜>"

/* Around what a tool answered; ordinary text to the tokenizer. */
#define SL_CHAT_RESULT "<tool_result>"
#define SL_CHAT_RESULT_END "</tool_result>"

/* A block of calls, and what is inside it. */
#define SL_CHAT_CALLS "<" SL_CHAT_DSML "tool_calls>"
#define SL_CHAT_CALLS_END "</" SL_CHAT_DSML "tool_calls>"
#define SL_CHAT_INVOKE "<" SL_CHAT_DSML "invoke name=\""
#define SL_CHAT_INVOKE_END "</" SL_CHAT_DSML "invoke>"
#define SL_CHAT_PARAMETER "<" SL_CHAT_DSML "parameter name=\""
#define SL_CHAT_PARAMETER_END "</" SL_CHAT_DSML "parameter>"

/* In front of a conversation, by how hard the model is to think. */
#define SL_CHAT_EFFORT_MAXIMUM                                                                     \
    "Reasoning Effort: Absolute maximum with no shortcuts permitted.\n"                            \
    "You MUST be very thorough in your thinking and comprehensively decompose the problem to "     \
    "resolve the root cause, rigorously stress-testing your logic against all potential "          \
    "paths, edge cases, and adversarial scenarios.\n"                                              \
    "Explicitly write out your entire deliberation process, documenting every intermediate "       \
    "step, considered alternative, and rejected hypothesis to ensure absolutely no "               \
    "assumption is left unchecked.\n"                                                              \
    "\n"

#define SL_CHAT_EFFORT_BEYOND                                                                      \
    "Reasoning Effort: Beyond maximum — exhaustive, relentless, and uncompromising.\n"           \
    "You MUST reason with the utmost depth and rigor, leaving absolutely nothing to chance: "      \
    "exhaustively decompose the problem into its most fundamental components, trace every "        \
    "causal chain to its root, and resolve the underlying cause rather than any surface "          \
    "symptom.\n"                                                                                   \
    "Do not stop reasoning until you have independently verified the solution from multiple "      \
    "angles and are certain that no assumption remains unchecked and no error remains "            \
    "undiscovered.\n"                                                                              \
    "\n"

/* Around the schemas of the tools, one a line. */
#define SL_CHAT_TOOLS_BEFORE                                                                       \
    "## Tools\n"                                                                                   \
    "\n"                                                                                           \
    "You have access to a set of tools to help answer the user's question. You can invoke "        \
    "tools by writing a \"<｜DSML｜tool_calls>\" block like the following:\n"                    \
    "\n"                                                                                           \
    "<｜DSML｜tool_calls>\n"                                                                     \
    "<｜DSML｜invoke name=\"$TOOL_NAME\">\n"                                                     \
    "<｜DSML｜parameter name=\"$PARAMETER_NAME\" "                                               \
    "string=\"true|false\">$PARAMETER_VALUE</｜DSML｜parameter>\n"                               \
    "...\n"                                                                                        \
    "</｜DSML｜invoke>\n"                                                                        \
    "<｜DSML｜invoke name=\"$TOOL_NAME2\">\n"                                                    \
    "...\n"                                                                                        \
    "</｜DSML｜invoke>\n"                                                                        \
    "</｜DSML｜tool_calls>\n"                                                                    \
    "\n"                                                                                           \
    "String parameters should be specified as is and set `string=\"true\"`. For all other "        \
    "types (numbers, booleans, arrays, objects), pass the value in JSON format and set "           \
    "`string=\"false\"`.\n"                                                                        \
    "\n"                                                                                           \
    "If thinking_mode is enabled (triggered by <think>), you MUST output your complete "           \
    "reasoning inside <think>...</think> BEFORE any tool calls or final response.\n"               \
    "\n"                                                                                           \
    "Otherwise, output directly after </think> with tool calls or final response.\n"               \
    "\n"                                                                                           \
    "### Available Tool Schemas\n"                                                                 \
    "\n"

#define SL_CHAT_TOOLS_AFTER                                                                        \
    "\n"                                                                                           \
    "\n"                                                                                           \
    "You MUST strictly follow the above defined tool name and parameter schemas to invoke "        \
    "tool calls.\n"

/* In front of the format that an answer is to have. */
#define SL_CHAT_RESPONSE_FORMAT                                                                    \
    "## Response Format:\n\nYou MUST strictly adhere to the following schema to reply:\n"

#endif
