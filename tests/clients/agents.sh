#!/usr/bin/env bash
# Agents that people use, with the real server and a worker that answers as a script says: each takes
# a turn with a call of a tool, and another one whose answer begins only after AGENT_DELAY_S seconds
# (default 330: they give up after 300 without a sign of life). Claude Code talks over the Unix
# socket, Codex and opencode over TCP on this machine.
cd "$(dirname "$0")/../.." || exit 1
. tests/tap.sh

delay_s=${AGENT_DELAY_S:-330}
folder=$PWD/build/agents
packages="@anthropic-ai/claude-code@2.1.197 @openai/codex@0.171.0 opencode-ai@1.18.33"
port=18124
export SLUICE_SCRIPT=$scratch/script.json SLUICE_MODEL=tests/small

# Installs the packages once; the stamp names their versions.
install() {
    [ "$(cat "$folder/installed" 2>/dev/null)" = "$packages" ] && return
    mkdir -p "$folder"
    echo '{"private": true}' >"$folder/package.json"
    # shellcheck disable=SC2086
    (cd "$folder" && npm install --no-audit --no-fund --silent $packages) &&
        echo "$packages" >"$folder/installed"
}
if ! install; then
    skip "agents" "npm is not there, or cannot fetch them"
    tap_end
fi

# One script for all: the tool that runs a command has another name in each.
/usr/bin/python3 - "$delay_s" >"$SLUICE_SCRIPT" <<'END'
import json, sys

def call(tool, parameter):
    return ("I should look.</think>I will look.\n\n<｜DSML｜tool_calls>\n"
            f'<｜DSML｜invoke name="{tool}">\n'
            f'<｜DSML｜parameter name="{parameter}" string="true">ls</｜DSML｜parameter>\n'
            '<｜DSML｜parameter name="description" string="true">Lists</｜DSML｜parameter>\n'
            "</｜DSML｜invoke>\n</｜DSML｜tool_calls>")

print(json.dumps([
    {"if": "be slow, please", "delay_s": int(sys.argv[1]),
     "answer": "That was long.</think>Patience is rewarded."},
    {"if": "<tool_result>", "answer": "One file.</think>There is one file here, treasure.txt."},
    {"if": '"exec_command"', "answer": call("exec_command", "cmd")},
    {"if": '"Bash"', "answer": call("Bash", "command")},
    {"if": '"bash"', "answer": call("bash", "command")},
    {"if": "", "answer": "Nothing.</think>A title"},
]))
END

build/release/tests/clients/scripted_serve tests/small --socket "$scratch/socket" \
    --listen 127.0.0.1:$port --alias deepseek-v4-pro 2>"$scratch/log" &
daemon=$!
wait_for curl -sf --unix-socket "$scratch/socket" http://localhost/health
export HOME=$scratch/home
mkdir -p "$HOME/.codex" "$HOME/project"
: >"$HOME/project/treasure.txt"
cat >"$HOME/.codex/config.toml" <<END
model = "deepseek-v4-pro"
model_provider = "sluice"
[model_providers.sluice]
name = "Sluice"
base_url = "http://127.0.0.1:$port/v1"
wire_api = "responses"
END
mkdir -p "$HOME/.config/opencode"
cat >"$HOME/.config/opencode/opencode.json" <<END
{"model": "sluice/deepseek-v4-pro", "autoupdate": false, "provider": {"sluice": {
  "npm": "@ai-sdk/openai-compatible", "name": "Sluice",
  "options": {"baseURL": "http://127.0.0.1:$port/v1"},
  "models": {"deepseek-v4-pro": {"name": "V4 Pro", "tool_call": true, "reasoning": true}}}}}
END

claude() {
    ANTHROPIC_UNIX_SOCKET=$scratch/socket ANTHROPIC_BASE_URL=http://localhost \
        ANTHROPIC_AUTH_TOKEN=x ANTHROPIC_MODEL=deepseek-v4-pro \
        CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC=1 \
        "$folder/node_modules/@anthropic-ai/claude-code-linux-x64/claude" -p "$1" --allowedTools Bash
}
codex() {
    "$folder/node_modules/.bin/codex" exec --skip-git-repo-check "$1"
}
opencode() {
    "$folder/node_modules/opencode-linux-x64/bin/opencode" run "$1"
}
turn() { # AGENT WHAT WORDS
    (cd "$HOME/project" && "$1" "$2" </dev/null) \
        >"$scratch/$1-out" 2>&1
    grep -q "$3" "$scratch/$1-out" || {
        tail -n 20 "$scratch/$1-out"
        return 1
    }
}

for agent in claude codex opencode; do
    check "$agent: a turn with a call of a tool" turn $agent "Which files are here?" "one file here, treasure"
done
for agent in claude codex opencode; do
    turn $agent "be slow, please" "Patience is rewarded" >"$scratch/$agent-slow" &
    eval "${agent}_turn=$!"
done
for agent in claude codex opencode; do
    process=${agent}_turn
    if wait "${!process}"; then
        ok "$agent: an answer that begins after $delay_s s"
    else
        fail "$agent: an answer that begins after $delay_s s" "$(tail -n 1 "$scratch/$agent-slow")"
    fi
done
check "none of them asked twice" \
    [ "$(grep -c ' 499 ' "$scratch/log")" = 0 ]

kill $daemon
wait $daemon
tap_end
