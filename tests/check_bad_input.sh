#!/usr/bin/env bash
# Bad input at the command level: a checkpoint is damaged in one way after the other, and the command
# must end with exit status 1 and exactly one line on stderr that names the file, tensor or key:
# no crash, no hang, no output. Last, the undamaged one must run, or all this would prove nothing.
cd "$(dirname "$0")/.." || exit 1
. tests/tap.sh

sluice=${SLUICE:-build/release/sluice}
python=${PYTHON:-/usr/bin/python3}
export PYTHONDONTWRITEBYTECODE=1
good=$scratch/good
bad=$scratch/bad
run=(--tokens "$scratch/tokens" --out "$scratch/logits.npy")

# Runs the command; it must end with exit status $2 and one line on stderr that matches $3.
stages="reading the headers|loading dense weights|measuring which reads suit the drive"
stages+="|making room for context and activations"
refused() { # name rc pattern arguments...
    local name=$1 want=$2 pattern=$3 rc lines

    shift 3
    timeout -k 5 60 "$sluice" "$@" >"$scratch/stdout" 2>"$scratch/stderr"
    rc=$?
    # A busy machine says what a slow start does; that is not the error's.
    lines=$(grep -vcE ": ($stages)(, for [0-9]+ s now)?\$" "$scratch/stderr")
    if [ $rc != "$want" ]; then
        fail "$name" "exit status $rc: $(head -c 300 "$scratch/stderr")"
    elif [ "$want" = 1 ] && [ "$lines" -gt "${lines_max:-1}" ]; then
        fail "$name" "$lines lines: $(head -c 300 "$scratch/stderr")"
    elif ! grep -q -e "$pattern" "$scratch/stderr"; then
        fail "$name" "expected $pattern, got $(head -c 300 "$scratch/stderr")"
    elif [ -e "$scratch/logits.npy" ]; then
        fail "$name" "it left an output file"
    else
        ok "$name" "$(head -n 1 "$scratch/stderr")"
    fi
    rm -f "$scratch/logits.npy"
}

damage() { # arguments of damage.py
    rm -rf "$bad"
    cp -r "$good" "$bad" && "$python" tests/oracle/damage.py "$bad" "$@"
}

# $3... is the damage; the model is then run.
broken() { # name pattern damage...
    local name=$1 pattern=$2

    shift 2
    if damage "$@"; then
        refused "$name" 1 "$pattern" logits "$bad" "${run[@]}"
    else
        fail "$name" "cannot do the damage"
    fi
}

# The damage does not matter: the model runs, and says what it passes over ($2; "": nothing).
harmless() { # name pattern damage...
    local name=$1 pattern=$2

    shift 2
    if damage "$@" && "$sluice" logits "$bad" "${run[@]}" 2>"$scratch/stderr" &&
        { [ -z "$pattern" ] || grep -q -e "$pattern" "$scratch/stderr"; } &&
        cmp -s "$scratch/logits.npy" "$scratch/good.npy"; then
        ok "$name"
    else
        fail "$name" "$(head -c 300 "$scratch/stderr")"
    fi
    rm -f "$scratch/logits.npy"
}

tokenizer() { # name pattern member value
    if damage tokenizer "$3" "$4"; then
        refused "$1" 1 "$2" tokenize "$bad" -p "some text"
    else
        fail "$1" "cannot do the damage"
    fi
}

# Three layers: two with hash routing, one with compression, indexer and scored routing.
"$sluice" synth tests/oracle/configs/tiny-flash.json "$good" --layers 3 >/dev/null ||
    fail "a checkpoint to damage"
for i in {1..100}; do echo $((i * 37 % 1024)); done >"$scratch/tokens"

w=layers.1.attn.wq_a.weight
broken "a shard is missing" 'model-00003-of-' delete $w
broken "a shard is truncated" 'model-00003-of-' truncate $w -100
broken "a shard is empty" 'model-00003-of-' truncate $w 0
broken "a shard ends in its header" 'model-00003-of-' truncate $w 1000
broken "header length beyond the file" 'model-00003-of-.*header' header-length $w 1000000000
broken "header length near 2^64" 'model-00003-of-.*header' header-length $w 18446744073709551615
broken "header length 0" 'model-00003-of-' header-length $w 0
broken "a header that is no JSON" 'model-00003-of-' header-text $w '{"a": '
broken "a header that is no object" 'model-00003-of-' header-text $w '[1, 2, 3]'
broken "overlapping tensors" "model-00003-of-.*layers\.1" overlap $w
broken "offsets beyond the file" $w header $w data_offsets '[0, 1000000000000]'
broken "offsets that go backwards" $w header $w data_offsets '[4096, 0]'
broken "negative offsets" $w header $w data_offsets '[-32768, 0]'
broken "offsets that are no numbers" $w header $w data_offsets '["a", "b"]'
broken "unknown dtype" "$w.*F8_E9M9" header $w dtype '"F8_E9M9"'
broken "another dtype" $w header $w dtype '"I8"'
broken "a misshapen tensor" $w header $w shape '[256, 128]'
broken "a size that is not its shape's" $w header $w shape '[128, 255]'
broken "a shape that overflows" $w header $w shape '[4294967296, 4294967297]'
broken "a negative shape" $w header $w shape '[-128, -256]'
broken "too many dimensions" $w header $w shape '[1, 1, 1, 1, 1, 1, 128, 256]'
broken "the index names what the shard lacks" $w unlist $w
broken "a missing tensor" $w rename $w layers.1.attn.wq_x.weight
broken "a missing scale" layers.1.attn.wq_a.scale rename layers.1.attn.wq_a.scale other
broken "a missing expert's weight" layers.2.ffn.experts.7.w2.weight \
    rename layers.2.ffn.experts.7.w2.weight other
broken "a misshapen expert" layers.2.ffn.experts.7.w3.weight \
    header layers.2.ffn.experts.7.w3.weight shape '[64, 256]'
broken "tid2eid out of range" layers.1.ffn.gate.tid2eid \
    poke layers.1.ffn.gate.tid2eid 4080 1800000000000000
broken "negative tid2eid" layers.0.ffn.gate.tid2eid \
    poke layers.0.ffn.gate.tid2eid 80 ffffffffffffffff
broken "NaN scale in a dense weight" layers.2.attn.wq_b \
    poke layers.2.attn.wq_b.scale 1 ff
broken "NaN in an FP8 weight" layers.2.attn.wkv.weight poke layers.2.attn.wkv.weight 1000 7f
broken "an embedding so large that its squares overflow" 'logits after token' \
    poke embed.weight $((37 * 512)) 7f7f7f7f
broken "NaN scale in an expert" 'layer.*2.*expert.*[^0-9]7[^0-9]\|layers\.2\.ffn\.experts\.7' \
    poke layers.2.ffn.experts.7.w1.scale 100 ff

# Config and tensors must agree, though all that is loaded is there.
broken "a layer beyond the last" 'layers\.3\..*num_hidden_layers' \
    add layers.2.attn_norm.weight layers.3.attn_norm.weight
broken "an expert beyond the last" 'experts\.24\..*n_routed_experts' \
    add layers.2.ffn.experts.23.w1.weight layers.2.ffn.experts.24.w1.weight
broken "a compressor where there should be none" 'layers\.2\.attn\..*compress_ratios' \
    config compress_ratios '[0, 0, 0, 0]'
broken "an indexer where there should be none" 'layers\.1\.attn\.indexer.*compress_ratios' \
    add layers.2.attn.indexer.wq_b.weight layers.1.attn.indexer.wq_b.weight
broken "routing by token where scores decide" 'layers\.2\..*tid2eid.*num_hash_layers' \
    add layers.1.ffn.gate.tid2eid layers.2.ffn.gate.tid2eid
broken "a bias in attention" 'layers\.2\.attn\.wq_a\.bias.*biases' \
    add layers.2.attn.q_norm.weight layers.2.attn.wq_a.bias

# And what nothing uses never matters, whatever its type.
"$sluice" logits "$good" --tokens "$scratch/tokens" --out "$scratch/good.npy" 2>/dev/null
harmless "a tensor of no use" 'note: .*1 tensor.*vision\.weight' add $w vision.weight
harmless "a tensor of no use in a layer" 'note: .*inv_freq' \
    add layers.2.attn.q_norm.weight layers.2.attn.rotary.inv_freq
harmless "an unknown dtype in a draft" '' header mtp.0.e_proj.weight dtype '"F8_E9M9"'
harmless "many dimensions in a draft" '' \
    header mtp.0.hnorm.weight shape '[1, 1, 1, 1, 1, 256]'
harmless "a key that is not known" 'note: .*keys that are not known.*: z_loss$' config z_loss 1
harmless "the newer spelling" '' config rope_parameters \
    '{"rope_type": "yarn", "factor": 16, "original_max_position_embeddings": 65536,
      "beta_fast": 32, "beta_slow": 1, "rope_theta": 10000}'
damage config model_type '"deepseek_v5"'
refused "another kind of model" 1 'model_type.*deepseek_v5.*--any-model-type' logits "$bad" "${run[@]}"
refused "and to pack" 1 'model_type.*deepseek_v5.*--any-model-type' pack "$bad" "$scratch/store"
check "unless it is asked for" "$sluice" logits "$bad" "${run[@]}" --any-model-type
check "with the same answer" cmp -s "$scratch/logits.npy" "$scratch/good.npy"
rm -f "$scratch/logits.npy"

broken "a vocabulary larger than the embedding" embed.weight config vocab_size 1025
broken "a hidden size that the tensors have not" 'safetensors: tensor' config hidden_size 384
while read -r key value; do
    broken "config: $key $value" "config.json.*${key##*.}" config "$key" "$value"
done <<'EOF'
vocab_size 0
vocab_size "1024"
hidden_size 200
num_hidden_layers 0
num_hidden_layers 5
num_hash_layers 4
compress_ratios [0,0]
compress_ratios [0,0,-4,0]
compress_ratios 4
num_attention_heads 0
num_attention_heads 3
num_key_value_heads 2
head_dim 100
qk_rope_head_dim 63
qk_rope_head_dim 128
q_lora_rank 200
o_groups 0
o_groups 3
o_lora_rank 200
index_n_heads 0
index_head_dim 96
index_head_dim 32
index_topk 0
sliding_window 0
n_routed_experts 0
num_experts_per_tok 25
num_experts_per_tok 0
n_routed_experts 5
n_shared_experts 2
moe_intermediate_size 200
routed_scaling_factor "a"
swiglu_limit -1
hc_mult 0
hc_sinkhorn_iters 0
rms_norm_eps -1
rope_theta 1
compress_rope_theta 1
rope_scaling []
rope_scaling.factor 0.001
max_position_embeddings 0
bos_token_id 5000
scoring_func "softmax"
tie_word_embeddings true
norm_topk_prob 0
norm_topk_prob "no"
attention_bias true
rope_scaling.attention_factor 1.28
rope_parameters {"rope_type":"yarn","factor":4}
layer_types ["sliding_attention","compressed_sparse_attention","sliding_attention"]
quantization_config.fmt "e5m2"
quantization_config.quant_method "int4"
quantization_config.weight_block_size [64,64]
EOF
for key in vocab_size hidden_size compress_ratios head_dim n_routed_experts rope_theta \
    swiglu_limit; do
    broken "config without $key" "config.json.*$key" config-drop $key
done
damage config vocab_size 1024 && echo '{' >"$bad/config.json"
refused "config that is no JSON" 1 config.json logits "$bad" "${run[@]}"
rm "$bad/config.json"
refused "no config" 1 config.json logits "$bad" "${run[@]}"
refused "no such folder" 1 "$scratch/none" logits "$scratch/none" "${run[@]}"

# Paths that were meant to be a model: what they are, and what to give instead.
cache=$scratch/models--deepseek-ai--DeepSeek-V4-Flash
mkdir -p "$scratch/empty" "$scratch/ggufs" "$cache/refs" "$cache/snapshots/"{abc,def} "$scratch/dangling"
printf def >"$cache/refs/main"
printf 'GGUF\3\0\0\0' | tee "$scratch/ggufs/x.gguf" >"$scratch/weights.bin"
printf 'version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 34\n' >"$scratch/pointer"
ln -s ../blobs/gone "$scratch/dangling/config.json"
for command in inspect "logits --tokens $scratch/tokens --out $scratch/logits.npy" \
    "plan --ssd 1G --dram 1G" "pack $scratch/store" verify; do
    read -ra words <<<"$command"
    is() { # name pattern path
        local arguments=("${words[0]}" "$3" "${words[@]:1}")

        refused "${words[0]}: $1" 1 "^sluice: $3.*$2" "${arguments[@]}"
    }
    is "an empty folder" "is empty; expected a folder with config.json" "$scratch/empty"
    is "a folder of GGUF" "GGUF files; Sluice runs the official" "$scratch/ggufs"
    is "a folder of Hugging Face's cache" '2 snapshots of the model.*abc, def (main)$' "$cache"
    is "a broken link" "symbolic link to a file that is not there" "$scratch/dangling"
    is "no such folder" "no such folder; expected a folder with config.json" "$scratch/none"
    is "a shard" "give the folder that it is in: $good\$" "$good/model-00001-of-00006.safetensors"
    [ "${words[0]}" = plan ] && continue
    is "a GGUF file" "a GGUF file; Sluice runs the official" "$scratch/weights.bin"
    [ "${words[0]}" = inspect ] || is "its config.json" "give the folder that it is in: $good\$" "$good/config.json"
done
refused "verify --repair: a checkpoint" 1 "$good: a checkpoint; .* store that sluice pack made" \
    verify "$good" --repair "$good"
refused "a repository's name" 1 'hf download some/model --local-dir' inspect some/model
damage config vocab_size 1024 && cp "$scratch/pointer" "$bad/model-00002-of-00006.safetensors"
refused "a shard that was not fetched" 1 'model-00002-of.*Git LFS pointer.*git lfs pull' \
    logits "$bad" "${run[@]}"
cp "$scratch/pointer" "$bad/config.json"
refused "a config that was not fetched" 1 'config.json.*Git LFS pointer' logits "$bad" "${run[@]}"

tokenizer "tokenizer without merges" 'tokenizer.json.*merges' model.merges null
tokenizer "merges of another type" 'tokenizer.json.*merges' model.merges '{"a": 1}'
tokenizer "a merge of one part" 'tokenizer.json.*merge' model.merges.3 '"th"'
tokenizer "a merge into no token" 'tokenizer.json.*merge' model.merges.3 '"zq xj"'
tokenizer "tokenizer without vocabulary" 'tokenizer.json.*vocab' model.vocab null
tokenizer "a broken expression" 'tokenizer.json' pre_tokenizer.pretokenizers.0.pattern.Regex '"(["'
tokenizer "a tokenizer of another kind" 'tokenizer.json' model.type '"Unigram"'
damage tokenizer version '"1.0"' && rm "$bad/tokenizer.json"
refused "no tokenizer" 1 tokenizer.json tokenize "$bad" -p "some text"

cp "$scratch/tokens" "$scratch/keep"
echo 1024 >>"$scratch/tokens"
refused "a token outside the vocabulary" 1 1024 logits "$good" "${run[@]}"
echo "1 2 three" >"$scratch/tokens"
refused "a token that is no number" 1 "$scratch/tokens: token 3" logits "$good" "${run[@]}"
echo "1 -2" >"$scratch/tokens"
refused "a negative token" 1 "$scratch/tokens: token 2" logits "$good" "${run[@]}"
: >"$scratch/tokens"
refused "an empty tokens file" 1 "$scratch/tokens" logits "$good" "${run[@]}"
rm "$scratch/tokens"
refused "no tokens file" 1 "$scratch/tokens" logits "$good" "${run[@]}"
cp "$scratch/keep" "$scratch/tokens"

# What is no regular file: opening it, or reading it, would wait for ever.
for name in config.json model.safetensors.index.json model-00002-of-00006.safetensors tokenizer.json; do
    command=(logits "$bad" "${run[@]}")
    [ "$name" != tokenizer.json ] || command=(tokenize "$bad" -p text)
    damage config vocab_size 1024 && rm "$bad/$name" && mkfifo "$bad/$name"
    refused "a pipe for $name" 1 "$name: not a regular file" "${command[@]}"
    rm "$bad/$name" && mkdir "$bad/$name"
    refused "a folder for $name" 1 "$name: a folder, not a regular file" "${command[@]}"
    rmdir "$bad/$name" && ln -s /dev/zero "$bad/$name"
    refused "a device for $name" 1 "$name: not a regular file" "${command[@]}"
done
damage config vocab_size 1024 && rm "$bad/config.json" && mkfifo "$bad/config.json"
refused "a pipe for a config.json that is planned for" 1 "config.json: not a regular file" \
    plan "$bad" --ram 1G --ssd 1G/s --dram 1G/s
"$sluice" pack "$good" "$scratch/store" >/dev/null 2>&1 || fail "a store to damage"
for name in config.json dense.bin experts-1.bin catalog.sealed; do
    rm -rf "$bad" && cp -r "$scratch/store" "$bad" && rm "$bad/$name" && mkfifo "$bad/$name"
    refused "a pipe for a store's $name" 1 . logits "$bad" "${run[@]}"
    lines_max=9 refused "... and verified" 1 . verify "$bad"
done
rm -rf "$bad" && cp -r "$scratch/store" "$bad" && rm "$bad/catalog.mdb" && mkfifo "$bad/catalog.mdb"
lines_max=9 refused "a pipe for what pack writes, verified" 1 damaged verify "$bad"

# LMDB maps the catalog that pack writes; a page that another program cuts off raises a signal.
cut_while_packed() {
    local pid status

    "$sluice" pack "$good" "$scratch/cut" --batch 64K >"$scratch/stdout" 2>"$scratch/stderr" &
    pid=$!
    while kill -0 "$pid" 2>/dev/null; do
        truncate -c -s 0 "$scratch/cut/catalog.mdb" 2>/dev/null
    done
    wait "$pid"
    status=$?
    echo "status $status, $(cat "$scratch/stderr")"
    [ "$status" = 1 ] && [ "$(wc -l <"$scratch/stderr")" = 1 ]
}
check "a catalog that is cut while it is written" cut_while_packed

refused "tokens without end" 1 '/dev/zero: larger than the 256 MiB' \
    logits "$good" --tokens /dev/zero --out "$scratch/logits.npy"
refused "a text without end" 1 '/dev/zero: larger than the 256 MiB' tokenize "$good" -f /dev/zero
check "a pipe for tokens" "$sluice" logits "$good" --tokens <(cat "$scratch/tokens") \
    --out "$scratch/logits.npy"
rm -f "$scratch/logits.npy"

# This one comes with the table of who needs how much memory, above its line.
lines_max=20 refused "a cache below one token's need" 1 '^sluice: .*cache' \
    logits "$good" "${run[@]}" --cache 4K
refused "an unknown flag" 2 frobnicate logits "$good" "${run[@]}" --frobnicate
refused "an unknown command" 2 frobnicate frobnicate
refused "no model" 2 . logits
refused "bad numerics" 2 numerics logits "$good" "${run[@]}" --numerics best
refused "an unknown instruction set" 2 mmx logits "$good" "${run[@]}" --isa mmx
SLUICE_ISA=mmx refused "the same in the environment" 2 'SLUICE_ISA .*mmx' logits "$good" "${run[@]}"
elsewhere=neon
[ "$(uname -m)" = x86_64 ] || elsewhere=avx512
refused "an instruction set that this CPU lacks" 1 "$elsewhere" \
    logits "$good" "${run[@]}" --isa $elsewhere
SLUICE_ISA=$elsewhere refused "the same in the environment" 1 "$elsewhere" logits "$good" "${run[@]}"
refused "an output that cannot be written" 1 "$scratch/none/x.npy" \
    logits "$good" --tokens "$scratch/tokens" --out "$scratch/none/x.npy"

# The command line wins over the environment, so this one runs as well.
check "the undamaged one runs" env SLUICE_ISA=$elsewhere "$sluice" logits "$good" "${run[@]}" --isa ref
rm -f "$scratch/logits.npy"
check "and its tokenizer" "$sluice" tokenize "$good" -p "some text"
tap_end
