//! Fields of config.json that may be left unread.

use serde_json::Value;

/// Fields without influence on the forward pass of a decoder: bookkeeping, and settings of generation
/// that older configs carry.
const WITHOUT_INFLUENCE: [&str; 63] = [
    "architectures",
    "attn_implementation",
    "auto_map",
    "bad_words_ids",
    "begin_suppress_tokens",
    "bos_token_id",
    "chunk_size_feed_forward",
    "decoder_start_token_id",
    "diversity_penalty",
    "do_sample",
    "dtype",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "eos_token_id",
    "exponential_decay_length_penalty",
    "finetuning_task",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "gradient_checkpointing",
    "id2label",
    "initializer_range",
    "is_encoder_decoder",
    "is_llama_config",
    "label2id",
    "length_penalty",
    "max_length",
    "min_length",
    "name_or_path",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_labels",
    "num_return_sequences",
    "output_attentions",
    "output_hidden_states",
    "output_scores",
    "pad_token_id",
    "prefix",
    "pretraining_tp",
    "problem_type",
    "pruned_heads",
    "remove_invalid_values",
    "repetition_penalty",
    "return_dict",
    "return_dict_in_generate",
    "sep_token_id",
    "suppress_tokens",
    "task_specific_params",
    "temperature",
    "tf_legacy_loss",
    "tokenizer_class",
    "top_k",
    "top_p",
    "torch_dtype",
    "torchscript",
    "transformers.js_config",
    "transformers_version",
    "typical_p",
    "unk_token_id",
    "unsloth_fixed",
    "unsloth_version",
    "use_bfloat16",
    "use_cache",
];

/// Switches that some families have and others only spell out; where a family does not read them,
/// they have to be off.
const SWITCHES: [&str; 9] = [
    "add_cross_attention",
    "attention_bias",
    "is_decoder",
    "lm_head_bias",
    "mlp_bias",
    "rope_interleaved",
    "tie_encoder_decoder",
    "use_mrope",
    "use_bidirectional_attention",
];

/// Returns whether a field that a family does not read has no influence on a forward pass.
pub(super) fn is_ignored(name: &str, value: &Value) -> bool {
    let is_off = SWITCHES.contains(&name) && *value == Value::Bool(false);
    is_off || value.is_null() || WITHOUT_INFLUENCE.contains(&name) || name.starts_with('_')
}
