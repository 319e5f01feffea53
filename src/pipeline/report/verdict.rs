//! A set in words: which sources the RL model distrusts, and what looks odd.

use std::collections::BTreeMap;

use super::super::signals;
use super::data::{Numbers, SourceData};
use crate::escape::Show as _;
use crate::shard::manifest::Manifest;
use crate::shard::statistics::Statistics;

/// Targets that a source has to have to be named first.
const ENOUGH_TARGETS: u64 = 1000;
/// Share of documents, rows or targets from which something is not an exception any more.
const MANY: f64 = 0.05;
/// Sources that are named besides the first.
const MOST_NAMED: usize = 6;
/// Share that is most.
const MOST: f64 = 0.5;

/// Says what there is to say first.
pub fn headlines(all: &Numbers, manifest: &Manifest) -> Vec<String> {
    let mut lines = Vec::new();
    if all.targets == 0 {
        return vec!["The set has no rows.".to_owned()];
    }
    let (Some(liking), Some(disagreement)) = (all.liking_bits, all.disagreement_bits) else {
        let perplexity = |source: &Statistics| source.rl_perplexity.unwrap_or(1.0);
        let mut line = format!(
            "The set was scored without a base, so it has no weights: there are log-probs of the RL model alone. Its \
             perplexity is {:.3}",
            perplexity(&manifest.totals)
        );
        let named = named(manifest);
        let hardest = named
            .iter()
            .max_by(|(_, a), (_, b)| perplexity(a).total_cmp(&perplexity(b)));
        if let Some((name, source)) = hardest {
            line += &format!(", and highest on {name}: {:.3}", perplexity(source));
        }
        return vec![line + "."];
    };
    let bits = |source: &Statistics| {
        let means = source.rl_logprob_mean.zip(source.base_logprob_mean);
        means.map_or(0.0, |(rl, base)| (rl - base) / std::f64::consts::LN_2)
    };
    let mut named = named(manifest);
    named.sort_by(|(_, a), (_, b)| bits(a).total_cmp(&bits(b)));
    if let Some((name, least)) = named.first() {
        lines.push(match bits(least) {
            below if below < 0.0 => format!(
                "The RL model distrusts {name} most: it finds its tokens {:.3} bits less likely than the base does, on average.",
                -below
            ),
            above => format!(
                "The RL model finds every larger source likelier than the base does, and {name} by least: {above:.3} bits per \
                 token."
            ),
        });
    }
    if let (Some((name, most)), true) = (named.last(), named.len() > 1) {
        lines.push(match bits(most) {
            above if above > 0.0 => {
                format!("It trusts {name} most: {above:.3} bits per token likelier.")
            }
            below => format!(
                "It finds no larger source likelier than the base does; {name} comes nearest, {:.3} bits per token below.",
                -below
            ),
        });
    }
    lines.push(format!(
        "Over all, the two models are {disagreement:.3} bits per token apart, and the RL model finds a token {:.3} bits \
         {} likely than the base does.",
        liking.abs(),
        if liking < 0.0 { "less" } else { "more" }
    ));
    if let (Some(effective), Some(low), Some(high)) = (all.effective, all.at_lower, all.at_upper) {
        lines.push(format!(
            "The weights leave {:.1} % of the targets effective; {:.1} % are at the lower bound, {:.1} % at the upper.",
            100.0 * effective / all.targets as f64,
            100.0 * low,
            100.0 * high
        ));
    }
    lines
}

/// Returns the sources with enough targets, or all where none has.
fn named(manifest: &Manifest) -> Vec<(String, &Statistics)> {
    let sources = manifest.sources.iter();
    let all: Vec<_> = sources
        .map(|(name, source)| (name.shown().to_string(), source))
        .collect();
    let is_enough = |(_, source): &&(String, &Statistics)| source.targets >= ENOUGH_TARGETS;
    let enough: Vec<_> = all.iter().filter(is_enough).cloned().collect();
    if enough.is_empty() { all } else { enough }
}

/// Returns the words of a text that have no digit.
fn without_numbers(text: &str) -> String {
    let words = text
        .split(' ')
        .filter(|word| !word.contains(|c: char| c.is_ascii_digit()));
    words.collect::<Vec<_>>().join(" ")
}

/// Says once what is odd about several sources.
fn of_sources_alike(sources: &[(&str, String)]) -> String {
    let Some((first, signal)) = sources.first() else {
        return String::new();
    };
    match sources.len() - 1 {
        0 => format!("{}: {signal}", first.shown()),
        more => {
            let others = sources.iter().skip(1).take(MOST_NAMED);
            let others: Vec<String> = others.map(|(name, _)| name.shown().to_string()).collect();
            let rest = match more.saturating_sub(MOST_NAMED) {
                0 => String::new(),
                rest => format!(" and {rest} more"),
            };
            format!(
                "{}: {signal}. The same goes for {}{rest}",
                first.shown(),
                others.join(", ")
            )
        }
    }
}

/// Says what looks odd; the thresholds of what scoring warns of are those of scoring.
pub fn oddities(manifest: &Manifest, sources: &[SourceData]) -> Vec<String> {
    let plan = &manifest.plan;
    let vocab_size = usize::try_from(plan.tokenizer.vocab_size).unwrap_or(usize::MAX);
    let is_one_model = plan
        .base
        .as_ref()
        .is_some_and(|base| base.fingerprint == plan.rl.fingerprint);
    let signals = |statistics: &Statistics, sources: &BTreeMap<String, Statistics>| {
        let formula = plan.formula.as_ref();
        signals::of_statistics(statistics, sources, formula, vocab_size, is_one_model)
    };
    let mut odd = Vec::new();
    if is_one_model {
        odd.push("the RL model and the base are one model, so every weight is 1".to_owned());
    }
    let of_all = signals(&manifest.totals, &manifest.sources);
    if of_all.is_empty() {
        // What begins alike is one thing that is odd, whatever numbers follow.
        let mut alike: BTreeMap<String, Vec<(&str, String)>> = BTreeMap::new();
        for (name, statistics) in &manifest.sources {
            let alone = BTreeMap::from([(name.clone(), statistics.clone())]);
            for signal in signals(statistics, &alone) {
                let beginning = signal.split([':', ',', '(']).next().unwrap_or_default();
                let of_sources = alike.entry(without_numbers(beginning)).or_default();
                of_sources.push((name, signal));
            }
        }
        odd.extend(
            alike
                .values()
                .map(|of_sources| of_sources_alike(of_sources)),
        );
    }
    odd.extend(of_all);
    let documents = &manifest.documents;
    let share = |part: u64, whole: u64| part as f64 / whole.max(1) as f64;
    if share(documents.split_documents, documents.documents) > MANY {
        odd.push(format!(
            "{} of {} documents were cut, since they do not fit into a row of {} tokens: their later rows were scored \
             without what came before; look at --seq-len",
            documents.split_documents, documents.documents, plan.seq_len
        ));
    }
    if documents.rejected_records > 0 {
        odd.push(format!(
            "{} records could not be read and were left out; remit-inspect rejects lists them",
            documents.rejected_records
        ));
    }
    if documents.spelled_documents > 0 {
        odd.push(format!(
            "the text of {} documents spelled out special tokens, and they became those tokens; look at \
             --special-tokens-in-text",
            documents.spelled_documents
        ));
    }
    for source in sources {
        let name = source.name.as_ref();
        let name = name.map_or("the other sources".to_owned(), |name| {
            name.shown().to_string()
        });
        let numbers = &source.numbers;
        if numbers.known >= MOST {
            odd.push(format!(
                "{name}: {:.0} % of its targets lie in runs that the models know by heart: boilerplate, or text they \
                 were trained on",
                100.0 * numbers.known
            ));
        }
        let duplicates = numbers.duplicates.unwrap_or(0);
        if share(duplicates, numbers.rows) > MANY {
            odd.push(format!(
                "{name}: {duplicates} of its {} rows have the very tokens of an earlier one",
                numbers.rows
            ));
        }
    }
    odd
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_odd_about_many_sources_is_said_once() {
        let of = |names: &[&'static str]| -> Vec<(&'static str, String)> {
            let noise = |name: &&'static str| (*name, format!("noise: {}", name.len()));
            names.iter().map(noise).collect()
        };
        assert_eq!(of_sources_alike(&of(&["a\n"])), "a\\n: noise: 2");
        assert_eq!(
            of_sources_alike(&of(&["a", "bb"])),
            "a: noise: 1. The same goes for bb"
        );
        let many = ["a", "b", "c", "d", "e", "f", "g", "h", "i"];
        assert_eq!(
            of_sources_alike(&of(&many)),
            "a: noise: 1. The same goes for b, c, d, e, f, g and 2 more"
        );
        assert_eq!(without_numbers("12 % of the weights"), "% of the weights");
    }
}
