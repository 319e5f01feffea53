//! Results as text for people.

use std::fmt::Write;
use std::path::Path;

use crate::escape::Show as _;
use crate::pipeline::compare::{ComparedLosses, Comparison};
use crate::pipeline::estimate::Estimate;
use crate::pipeline::inspect::Verification;
use crate::shard::ErrorKind;
use crate::shard::manifest::Manifest;
use crate::shard::statistics::Statistics;
use crate::tokenize::{DocumentTokens, NamedToken, SpecialTokens, SpecialTokensInText};
use crate::types::TokenId;

/// Writes `1234567` as `1,234,567`.
pub fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Writes a token that documents begin or end with.
pub fn document_token(token: &Option<NamedToken>) -> String {
    token
        .as_ref()
        .map_or_else(|| "none".to_owned(), ToString::to_string)
}

/// Returns BOS and EOS of a set as lines of a table.
fn document_tokens(manifest: &Manifest) -> [(&'static str, String); 2] {
    let of = |token: fn(&DocumentTokens) -> &Option<NamedToken>, id: Option<TokenId>| match (
        &manifest.plan.tokenizer.document_tokens,
        id,
    ) {
        (Some(tokens), _) => document_token(token(tokens)),
        (None, Some(id)) => format!("id {id}"),
        (None, None) => "none".to_owned(),
    };
    let SpecialTokens { bos, eos } = manifest.plan.special_tokens;
    [
        ("BOS", of(|tokens| &tokens.bos, bos)),
        ("EOS", of(|tokens| &tokens.eos, eos)),
    ]
}

fn number(value: Option<f64>, decimals: usize) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.decimals$}"))
}

/// Summarizes a finished set.
pub fn summary(manifest: &Manifest) -> String {
    let plan = &manifest.plan;
    let bytes: u64 = manifest.shards.iter().map(|shard| shard.size_bytes).sum();
    let per_token = match manifest.totals.tokens {
        0 => String::new(),
        tokens => format!(", {:.2} bytes per token", bytes as f64 / tokens as f64),
    };
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        let _ = writeln!(text, "{name:<12}{value}");
    };
    line(
        "RL model",
        format!("{} ({})", plan.rl.path.shown(), plan.rl.model_type.shown()),
    );
    if let Some(base) = &plan.base {
        line(
            "base",
            format!("{} ({})", base.path.shown(), base.model_type.shown()),
        );
    }
    line(
        "packing",
        format!("{}, rows of up to {} tokens", plan.packing, plan.seq_len),
    );
    for (name, token) in document_tokens(manifest) {
        line(name, token);
    }
    if let Some(formula) = &plan.formula {
        line(
            "weights",
            format!(
                "epsilon {}, temperature {}",
                formula.epsilon(),
                formula.temperature()
            ),
        );
    }
    let documents = &manifest.documents;
    line(
        "documents",
        format!(
            "{} in {} files; {} empty, {} split, {} rows of fewer than 2 tokens left out",
            grouped(documents.documents),
            plan.corpus.len(),
            grouped(documents.empty_documents),
            grouped(documents.split_documents),
            grouped(documents.dropped_rows)
        ),
    );
    if documents.short_documents > 0 {
        line(
            "short",
            format!(
                "{} documents of fewer than {} tokens left out",
                grouped(documents.short_documents),
                plan.min_tokens
            ),
        );
    }
    if documents.spelled_documents > 0 {
        line(
            "spelled out",
            format!(
                "{} special tokens in the text of {} documents, which became those tokens; with \
                 --special-tokens-in-text literal they stay text",
                grouped(documents.spelled_tokens),
                grouped(documents.spelled_documents)
            ),
        );
    }
    if plan.special_tokens_in_text == SpecialTokensInText::Literal {
        line("spelled out", "special tokens in text stay text".to_owned());
    }
    if let Some(rejects) = &manifest.rejects {
        line(
            "rejects",
            format!(
                "{} records that can't be read left out; remit-inspect rejects lists them",
                grouped(rejects.records)
            ),
        );
    }
    line(
        "shards",
        format!(
            "{}, {} bytes{per_token}",
            manifest.shards.len(),
            grouped(bytes)
        ),
    );
    text.push('\n');
    table(&mut text, manifest);
    text
}

/// Tells what a run would take.
pub fn estimate(estimate: &Estimate) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        let _ = writeln!(text, "{name:<12}{value}");
    };
    let time = |seconds: f64| {
        indicatif::HumanDuration(std::time::Duration::from_secs_f64(seconds)).to_string()
    };
    line(
        "corpus",
        format!(
            "{} files, {} bytes, {} bytes of text",
            grouped(estimate.files as u64),
            grouped(estimate.stored_bytes),
            grouped(estimate.text_bytes)
        ),
    );
    line(
        "parts",
        format!(
            "{}, {} of them there already; {} are this worker's",
            grouped(estimate.parts as u64),
            grouped(estimate.finished_parts as u64),
            grouped(estimate.parts_of_this_worker as u64)
        ),
    );
    line(
        "tokens",
        format!(
            "about {} in {} rows (from {} documents with {} tokens)",
            grouped(estimate.tokens),
            grouped(estimate.rows),
            grouped(estimate.sampled_documents),
            grouped(estimate.sampled_tokens)
        ),
    );
    for (name, token) in [
        ("BOS", &estimate.document_tokens.bos),
        ("EOS", &estimate.document_tokens.eos),
    ] {
        line(name, document_token(token));
    }
    line(
        "output",
        format!("about {} bytes", grouped(estimate.output_bytes)),
    );
    match (estimate.tokens_per_second, estimate.seconds) {
        (Some(rate), Some(seconds)) => line(
            "time",
            format!(
                "about {} for this worker, at {rate:.0} tokens/s",
                time(seconds)
            ),
        ),
        _ => line("time", "unknown: there was no row to score".to_owned()),
    }
    text.push_str("\nnothing was written: this was a dry run\n");
    text
}

fn table(text: &mut String, manifest: &Manifest) {
    let width = manifest
        .sources
        .keys()
        .map(|source| source.shown().to_string().chars().count())
        .max()
        .unwrap_or(0)
        .clamp(6, 48);
    let has_base = manifest.plan.base.is_some();
    let _ = write!(
        text,
        "{:<width$}  {:>10}  {:>12}  {:>8}",
        "source", "rows", "tokens", "ppl RL"
    );
    if has_base {
        let _ = write!(
            text,
            "  {:>8}  {:>6} {:>6} {:>6} {:>6}  {:>7} {:>7}",
            "ppl base", "w mean", "w 5%", "w 50%", "w 95%", "at low", "at high"
        );
    }
    text.push('\n');
    let sources = manifest
        .sources
        .iter()
        .map(|(name, statistics)| (name.as_str(), statistics));
    for (name, statistics) in sources.chain([("total", &manifest.totals)]) {
        row(text, name, width, statistics);
    }
}

fn row(text: &mut String, name: &str, width: usize, statistics: &Statistics) {
    let name = name.shown().to_string();
    let chars = name.chars().count();
    let shown: String = if chars > width {
        let tail: String = name.chars().skip(chars - (width - 1)).collect();
        format!("…{tail}")
    } else {
        name
    };
    let _ = write!(
        text,
        "{shown:<width$}  {:>10}  {:>12}  {:>8}",
        grouped(statistics.rows),
        grouped(statistics.tokens),
        number(statistics.rl_perplexity, 3)
    );
    if let Some(weight) = &statistics.weight {
        let _ = write!(
            text,
            "  {:>8}  {:>6.3} {:>6.3} {:>6.3} {:>6.3}  {:>6.1}% {:>6.1}%",
            number(statistics.base_perplexity, 3),
            weight.mean,
            weight.p05,
            weight.p50,
            weight.p95,
            100.0 * weight.share_at_lower,
            100.0 * weight.share_at_upper
        );
    }
    text.push('\n');
}

/// Tells in one line that a set has no problems.
pub fn verified(dir: &Path, manifest: &Manifest) -> String {
    format!(
        "{}: {} shards, {} rows, {} tokens: digests, columns and counts are right, and every row keeps the rules\n",
        dir.shown(),
        manifest.shards.len(),
        grouped(manifest.totals.rows),
        grouped(manifest.totals.tokens)
    )
}

/// Returns what was checked, and every file with a problem, as one JSON object.
pub fn verification_json(verification: &Verification) -> String {
    let problems: Vec<_> = verification
        .problems
        .iter()
        .map(|(file, error)| {
            let kind = match error.kind() {
                ErrorKind::Missing => "missing",
                ErrorKind::Io => "unreadable",
                _ => "damaged",
            };
            serde_json::json!({"file": file, "kind": kind, "problem": error.to_string()})
        })
        .collect();
    let object = serde_json::json!({
        "ok": problems.is_empty(),
        "shards": verification.manifest.shards.len(),
        "rows": verification.manifest.totals.rows,
        "tokens": verification.manifest.totals.tokens,
        "problems": problems,
    });
    object.to_string()
}

/// Does the same for a set whose manifest can't be used, so that nothing else can be checked.
pub fn unverifiable_json(problem: &str) -> String {
    let object = serde_json::json!({
        "ok": false,
        "shards": null,
        "rows": null,
        "tokens": null,
        "problems": [{"file": "_remit/manifest", "kind": "manifest", "problem": problem}],
    });
    object.to_string()
}

/// Tables the losses of two models, by source.
pub fn comparison(comparison: &Comparison) -> String {
    let Comparison {
        models: [a, b],
        weights,
        all,
        sources,
    } = comparison;
    let width = sources
        .keys()
        .map(|name| name.shown().to_string().chars().count())
        .max();
    let width = width.unwrap_or(0).max("source".len());
    let (a, b, weights) = (a.shown(), b.shown(), weights.shown());
    let mut text = format!(
        "A: {a}\nB: {b}\non the rows of {weights}; losses in nats per target, weighted ones with the model as the \
         learner\n\n{:<width$} {:>12} {:>9} {:>9} {:>9}   {:>10} {:>10}\n",
        "source", "targets", "A", "B", "B - A", "A weighted", "B weighted"
    );
    let all = ("all", all);
    let rows = sources.iter().map(|(name, losses)| (name.as_str(), losses));
    for (name, losses) in rows.chain([all]) {
        let ComparedLosses {
            targets,
            ntp_loss: [a, b],
            loss: [weighted_a, weighted_b],
        } = losses;
        let name = name.shown().to_string();
        let _ = writeln!(
            text,
            "{name:<width$} {:>12} {a:>9.4} {b:>9.4} {:>+9.4}   {weighted_a:>10.4} {weighted_b:>10.4}",
            grouped(*targets),
            b - a
        );
    }
    text
}

#[cfg(test)]
mod tests {
    #[test]
    fn thousands_are_grouped() {
        let texts = [0, 999, 1000, 1_234_567].map(super::grouped);
        assert_eq!(texts, ["0", "999", "1,000", "1,234,567"]);
    }
}
