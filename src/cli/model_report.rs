//! A model's description as text for people.

use std::fmt::Write;

use super::report::{document_token, grouped};
use crate::escape::Show as _;
use crate::model::{Activation, Architecture, BlockConfig, NormPlacement, Projections, QkNorm};
use crate::pipeline::inspect::ModelReport;

/// Returns the table of `remit-inspect model`.
pub fn text(report: &ModelReport) -> String {
    let architecture = &report.architecture;
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        let _ = writeln!(text, "{name:<14}{value}");
    };
    let kind = match &report.text_model_type {
        Some(text) => format!(
            "the text of {}, which is {}",
            report.model_type.shown(),
            text.shown()
        ),
        None => report.model_type.shown().to_string(),
    };
    line("model", format!("{} ({kind})", report.model.shown()));
    line(
        "shape",
        format!(
            "{} layers, hidden {}, vocabulary {}, context {}",
            architecture.blocks.len(),
            grouped(architecture.hidden_size as u64),
            grouped(architecture.vocab_size as u64),
            grouped(architecture.max_position_embeddings as u64)
        ),
    );
    for (name, describe) in [
        ("attention", attention as fn(&BlockConfig) -> String),
        ("projections", projections),
        ("window", window),
        ("feed-forward", feed_forward),
        ("norms", norms),
    ] {
        line(name, by_layer(&architecture.blocks, describe));
    }
    line(
        "RoPE",
        by_layer(&architecture.blocks, |block| rotation(architecture, block)),
    );
    line("head", head(architecture));
    let bytes: u64 = report.files.iter().map(|(_, bytes)| bytes).sum();
    if !report.ignored_config_fields.is_empty() {
        line("ignored", report.ignored_config_fields.join(", "));
    }
    let files = match &report.weights_problem {
        Some(problem) => format!("no weights yet: {problem}"),
        None => format!(
            "{} of {}, stored as {}",
            match report.files.as_slice() {
                [(name, _)] => name.shown().to_string(),
                files => format!("{} shards", files.len()),
            },
            size(bytes),
            report.dtypes
        ),
    };
    line("files", files);
    line(
        "parameters",
        format!(
            "{}; {} without the embedding",
            grouped(report.parameters),
            grouped(report.parameters_without_embedding)
        ),
    );
    line(
        "FLOPs",
        format!(
            "{} per token forward, {} in training, in rows of {} tokens",
            flops(report.forward_flops_per_token),
            flops(report.training_flops_per_token),
            grouped(report.seq_len as u64)
        ),
    );
    line(
        "memory",
        format!(
            "to score about {} (with --dtype bf16 {}); to anneal about {} at {} tokens per micro-batch",
            size(report.scoring_bytes),
            size(report.scoring_bytes_bf16),
            size(report.annealing_bytes),
            grouped(report.micro_batch_tokens as u64)
        ),
    );
    line(
        "tensors",
        match (&report.weights_problem, report.values_checked) {
            (Some(_), _) => format!("{} are asked for", report.num_tensors),
            (None, true) => format!(
                "all {} are there, in shape and dtype; every value is finite",
                report.num_tensors
            ),
            (None, false) => format!(
                "all {} are there, in shape and dtype; --check-values reads them too",
                report.num_tensors
            ),
        },
    );
    line(
        "tokenizer",
        match (&report.tokenizer_ids, &report.tokenizer_problem) {
            (Some(ids), _) if report.ids_without_row > 0 => format!(
                "{} ids; the last {} have no row in the embedding: a document that uses one is a bad record",
                grouped(*ids as u64),
                grouped(report.ids_without_row as u64)
            ),
            (Some(ids), _) => format!("{} ids", grouped(*ids as u64)),
            (None, reason) => format!(
                "not usable: {}",
                reason.as_deref().unwrap_or("unknown").shown()
            ),
        },
    );
    if let Some(tokens) = &report.document_tokens {
        for (name, token) in [("BOS", &tokens.bos), ("EOS", &tokens.eos)] {
            line(name, document_token(token));
        }
    }
    for warning in &report.tokenizer_warnings {
        line("warning", warning.replace('\n', "\n              "));
    }
    text
}

/// Joins what `describe` says of the blocks: once if it is the same for all, else with the layers' numbers.
fn by_layer(blocks: &[BlockConfig], describe: impl Fn(&BlockConfig) -> String) -> String {
    let mut kinds: Vec<(String, Vec<usize>)> = Vec::new();
    for (i, block) in blocks.iter().enumerate() {
        let kind = describe(block);
        match kinds.iter_mut().find(|(known, _)| *known == kind) {
            Some((_, layers)) => layers.push(i),
            None => kinds.push((kind, vec![i])),
        }
    }
    match kinds.as_slice() {
        [(only, _)] => only.clone(),
        several => several
            .iter()
            .map(|(kind, layers)| format!("{kind} in {}", ranges(layers)))
            .collect::<Vec<_>>()
            .join("; "),
    }
}

/// Writes `[0, 1, 2, 4]` as `0-2, 4`.
fn ranges(numbers: &[usize]) -> String {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for &n in numbers {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == n => *last = n,
            _ => runs.push((n, n)),
        }
    }
    runs.iter()
        .map(|(first, last)| match first == last {
            true => first.to_string(),
            false => format!("{first}-{last}"),
        })
        .collect::<Vec<_>>()
        .join(", ")
}

fn attention(block: &BlockConfig) -> String {
    let mut text = format!(
        "{} heads over {} of keys and values, {} features per head",
        block.num_heads, block.num_kv_heads, block.head_dim
    );
    if block.v_head_dim != block.head_dim {
        let _ = write!(text, " ({} of values)", block.v_head_dim);
    }
    let usual = (block.head_dim as f64).powf(-0.5) as f32;
    if (block.score_scale - usual).abs() > 1e-6 * usual {
        let _ = write!(text, ", scores x {:.4}", block.score_scale);
    }
    if let Some(cap) = block.score_soft_cap {
        let _ = write!(text, ", scores capped at {cap}");
    }
    text
}

fn projections(block: &BlockConfig) -> String {
    let mut text = match block.projections {
        Projections::Separate { bias } => format!("separate{}", biased(bias)),
        Projections::Fused => "one matrix for queries, keys and values".to_owned(),
        Projections::Mla(mla) => format!(
            "latent: queries {}, keys and values of rank {}{}",
            mla.q_lora_rank
                .map_or_else(|| "direct".to_owned(), |rank| format!("of rank {rank}")),
            mla.kv_lora_rank,
            biased(mla.attention_bias)
        ),
    };
    let _ = write!(text, "; output{}", biased(block.output_bias));
    match block.qk_norm {
        None => {}
        Some(QkNorm::Head) => text.push_str("; queries and keys normalized per head"),
        Some(QkNorm::Projection) => text.push_str("; queries and keys normalized across heads"),
    }
    text
}

fn biased(bias: bool) -> &'static str {
    if bias { " with bias" } else { " without bias" }
}

fn window(block: &BlockConfig) -> String {
    match block.window {
        None => "none".to_owned(),
        Some(tokens) => format!("{} tokens", grouped(tokens as u64)),
    }
}

fn feed_forward(block: &BlockConfig) -> String {
    format!(
        "{} wide, {}{}{}",
        grouped(block.intermediate_size as u64),
        match block.activation {
            Activation::Silu => "SiLU gate",
            Activation::GeluTanh => "GELU gate (tanh)",
        },
        if block.fused_mlp {
            ", gate and up in one matrix"
        } else {
            ""
        },
        biased(block.mlp_bias)
    )
}

fn norms(block: &BlockConfig) -> String {
    match block.norms {
        NormPlacement::Pre => "before each sublayer",
        NormPlacement::Post => "after each sublayer",
        NormPlacement::PreAndPost => "before and after each sublayer",
    }
    .to_owned()
}

fn rotation(architecture: &Architecture, block: &BlockConfig) -> String {
    let Some(rope) = block.rope.and_then(|i| architecture.ropes.get(i)) else {
        return "none".to_owned();
    };
    let slowest = rope.frequencies.iter().copied().fold(f32::MAX, f32::min);
    let mut text = format!(
        "{} of {} features, wavelengths up to {:.0} tokens",
        2 * rope.frequencies.len(),
        block.head_dim,
        2.0 * std::f32::consts::PI / slowest
    );
    if rope.scale != 1.0 {
        let _ = write!(text, ", x {:.3}", rope.scale);
    }
    if let Some(long) = &rope.long {
        let _ = write!(text, ", others above {} tokens", long.above_tokens);
    }
    text
}

fn head(architecture: &Architecture) -> String {
    let mut text = match architecture.tied_head {
        true => "the embedding".to_owned(),
        false => "a matrix of its own".to_owned(),
    };
    if let Some(cap) = architecture.logit_soft_cap {
        let _ = write!(text, ", logits capped at {cap}");
    }
    if architecture.embedding_scale != 1.0 {
        let _ = write!(text, "; embeddings x {:.3}", architecture.embedding_scale);
    }
    text
}

/// Writes `1234567890` as `1.23 GB`.
fn size(bytes: u64) -> String {
    scaled(bytes as f64, &["B", "kB", "MB", "GB", "TB"])
}

fn flops(count: f64) -> String {
    scaled(count, &["", "k", "M", "G", "T"])
}

fn scaled(mut value: f64, units: &[&str]) -> String {
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < units.len() {
        value /= 1000.0;
        unit += 1;
    }
    let decimals = match value {
        value if unit == 0 || value >= 100.0 => 0,
        value if value >= 10.0 => 1,
        _ => 2,
    };
    format!("{value:.decimals$} {}", units[unit])
        .trim_end()
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_rounded_to_three_digits() {
        assert_eq!(size(999), "999 B");
        assert_eq!(size(999_600), "1.00 MB");
        assert_eq!(size(12_345_678), "12.3 MB");
        assert_eq!(flops(1.234e11), "123 G");
        assert_eq!(ranges(&[0, 1, 2, 4, 6, 7]), "0-2, 4, 6-7");
    }
}
