//! Shows a row of a set: text coloured by weight, or a table of its tokens.

use std::borrow::Cow;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::io::IsTerminal;

use crate::escape::{self, Show as _};
use crate::pipeline::inspect::ShownRow;

/// Says when text is coloured.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Color {
    /// Coloured on a terminal, unless NO_COLOR is set; else a table
    #[default]
    Auto,
    /// Coloured text
    Always,
    /// A table
    Never,
}

/// Foreground and background, of 256 colours, from slightly to far below the middle of a scale.
const BELOW: [&str; 3] = ["\x1b[30;48;5;195m", "\x1b[30;48;5;117m", "\x1b[30;48;5;33m"];
/// The same above it.
const ABOVE: [&str; 3] = [
    "\x1b[30;48;5;224m",
    "\x1b[30;48;5;217m",
    "\x1b[30;48;5;203m",
];
const RESET: &str = "\x1b[0m";

/// Weights nearer to 1 than this are never coloured, however small epsilon is: who trains would not notice.
const LEAST_VISIBLE: f32 = 0.02;
/// Surprise, `-log p_RL` in nats, above which a token has the first, second and third shade where there are
/// no weights.
const SURPRISE_STEPS: [f32; 3] = [2.0, 4.0, 6.0];

pub(super) fn row(row: &ShownRow, color: Color) -> String {
    let no_color = std::env::var_os("NO_COLOR");
    let is_coloured = is_coloured(color, std::io::stdout().is_terminal(), no_color.as_deref());
    let scored = &row.stored.scored;
    let mut text = format!(
        "row {}: {} tokens, from record {} of {}\n",
        row.stored.row_id,
        scored.num_tokens(),
        scored.doc_index,
        scored.source.shown()
    );
    match &row.pieces {
        Some(pieces) if is_coloured => coloured(&mut text, row, pieces),
        _ => table(&mut text, row),
    }
    text
}

/// NO_COLOR counts if it is not empty, whatever it says (no-color.org).
fn is_coloured(color: Color, is_terminal: bool, no_color: Option<&OsStr>) -> bool {
    match color {
        Color::Always => true,
        Color::Never => false,
        Color::Auto => is_terminal && no_color.is_none_or(OsStr::is_empty),
    }
}

/// Maps tokens to shades: those within the first step of the middle have none.
struct Scale {
    /// Distances from the middle above which a shade begins.
    steps: [f32; 3],
    /// By weight, around 1; else by surprise, from 0 up.
    by_weight: bool,
}

impl Scale {
    fn of(row: &ShownRow) -> Self {
        match (&row.stored.scored.weights, row.epsilon) {
            (Some(_), Some(epsilon)) => Self {
                steps: weight_steps(epsilon),
                by_weight: true,
            },
            _ => Self {
                steps: SURPRISE_STEPS,
                by_weight: false,
            },
        }
    }

    fn shade(&self, distance: f32) -> &'static str {
        let level = self.steps.iter().filter(|step| distance.abs() > **step);
        let shades = if distance < 0.0 { BELOW } else { ABOVE };
        match level.count() {
            0 => "",
            level => shades[level - 1],
        }
    }

    /// Returns the shade of the token at `position`; the first of a row is no target and has none.
    fn shade_at(&self, row: &ShownRow, position: usize) -> &'static str {
        let scored = &row.stored.scored;
        let target = position.checked_sub(1);
        let value = target.filter(|target| scored.is_target(*target));
        let value = value.and_then(|target| {
            if self.by_weight {
                scored.weights.as_ref()?.get(target).map(|w| w - 1.0)
            } else {
                scored.rl_logprobs.get(target).map(|log_prob| -log_prob)
            }
        });
        value.map_or("", |distance| self.shade(distance))
    }

    fn legend(&self) -> String {
        let [first, second, third] = self.steps;
        let swatch = |shade: &str| format!("{shade}  {RESET}");
        let [a, b, c] = ABOVE.map(swatch);
        if !self.by_weight {
            return format!(
                "surprise of the RL model, -log p: none up to {first} nats, {a} above {first}, {b} above {second}, \
                 {c} above {third}"
            );
        }
        if first.is_infinite() {
            return format!(
                "weight: not coloured, as none of the set can differ from 1 by more than {LEAST_VISIBLE}"
            );
        }
        let [x, y, z] = BELOW.map(swatch);
        let at = |distance: f32| short(1.0 + distance);
        format!(
            "weight: {z} below {}, {y} below {}, {x} below {}, none to {}, {a} above {}, {b} above {}, {c} above {}",
            at(-third),
            at(-second),
            at(-first),
            at(first),
            at(first),
            at(second),
            at(third)
        )
    }
}

/// Divides weights up to a distance of epsilon from 1: a neutral quarter, and three shades. None where all are
/// too near to 1 to matter.
fn weight_steps(epsilon: f32) -> [f32; 3] {
    if epsilon <= LEAST_VISIBLE {
        return [f32::INFINITY; 3];
    }
    let neutral = (epsilon / 4.0).max(LEAST_VISIBLE);
    let step = (epsilon - neutral) / 3.0;
    [neutral, neutral + step, neutral + 2.0 * step]
}

/// A number with at most three decimals.
fn short(value: f32) -> String {
    let text = format!("{value:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn coloured(text: &mut String, row: &ShownRow, pieces: &[(usize, String)]) {
    let scale = Scale::of(row);
    let _ = writeln!(text, "{}\n", scale.legend());
    let mut position = 0;
    for (len, piece) in pieces {
        let shade = scale.shade_at(row, position + len - 1);
        // A background that reaches over the end of a line would fill the next one.
        for (i, line) in piece.split('\n').enumerate() {
            if i > 0 {
                text.push('\n');
            }
            if !line.is_empty() {
                let _ = write!(text, "{shade}{}{RESET}", printable(line));
            }
        }
        position += len;
    }
    text.push('\n');
}

/// Text without what would move the cursor, change colours or turn the direction of writing.
fn printable(line: &str) -> Cow<'_, str> {
    escape::lines(line)
}

fn table(text: &mut String, row: &ShownRow) {
    let scored = &row.stored.scored;
    let _ = writeln!(text, "position       id   weight      rl    base  text");
    let number = |values: Option<&Vec<f32>>, position: usize, digits: usize| {
        let value = position
            .checked_sub(1)
            .filter(|target| scored.is_target(*target))
            .and_then(|target| values?.get(target));
        value.map_or_else(|| "-".to_owned(), |value| format!("{value:.digits$}"))
    };
    let mut texts = Vec::new();
    for (len, piece) in row.pieces.iter().flatten() {
        texts.extend((1..*len).map(|_| String::new()));
        texts.push(escape::lines(&format!("{piece:?}")).into_owned());
    }
    for (position, id) in scored.input_ids.iter().enumerate() {
        let line = format!(
            "{position:>8} {id:>8} {:>8} {:>7} {:>7}  {}",
            number(scored.weights.as_ref(), position, 4),
            number(Some(&scored.rl_logprobs), position, 3),
            number(scored.base_logprobs.as_ref(), position, 3),
            texts.get(position).map_or("", String::as_str)
        );
        let _ = writeln!(text, "{}", line.trim_end());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::row::StoredRow;
    use crate::types::ScoredRow;

    fn shown(source: &str, weights: &[f32]) -> ShownRow {
        let len = weights.len();
        ShownRow {
            stored: StoredRow {
                row_id: 7,
                scored: ScoredRow {
                    source: source.into(),
                    doc_index: 3,
                    doc_starts: vec![0],
                    input_ids: (0..=len as u32).collect(),
                    rl_logprobs: vec![-1.0; len],
                    base_logprobs: Some(vec![-1.5; len]),
                    weights: Some(weights.to_vec()),
                    target_mask: None,
                    distributions: crate::types::Distributions::default(),
                },
            },
            pieces: Some((0..=len).map(|i| (1, format!("t{i}"))).collect()),
            epsilon: Some(0.2),
        }
    }

    #[test]
    fn colour_is_for_terminals_without_no_color() {
        let set = Some(OsStr::new("1"));
        let empty = Some(OsStr::new(""));
        for (color, is_terminal, no_color, expected) in [
            (Color::Auto, true, None, true),
            (Color::Auto, true, empty, true),
            (Color::Auto, true, set, false),
            (Color::Auto, false, None, false),
            (Color::Always, false, set, true),
            (Color::Never, true, None, false),
        ] {
            let found = is_coloured(color, is_terminal, no_color);
            assert_eq!(found, expected, "{color:?}, {is_terminal}, {no_color:?}");
        }
    }

    /// The last line of a row that is printed in colour.
    fn tokens(shown: &ShownRow) -> String {
        let text = row(shown, Color::Always);
        text.lines().last().unwrap().to_owned()
    }

    #[test]
    fn the_bounds_have_the_outer_shades_and_1_has_none() {
        let [_, _, low] = BELOW;
        let [_, _, high] = ABOVE;
        assert_eq!(
            tokens(&shown("a.txt", &[0.8, 1.0, 1.2])),
            format!("t0{RESET}{low}t1{RESET}t2{RESET}{high}t3{RESET}")
        );
    }

    #[test]
    fn weights_near_1_have_no_colour_whatever_epsilon_is() {
        let near = "t0\x1b[0mt1\x1b[0mt2\x1b[0mt3\x1b[0mt4\x1b[0m";
        for (epsilon, weights) in [
            (0.2, [1.002, 0.998, 1.049, 0.951]),
            (0.05, [1.002, 0.998, 1.019, 0.981]),
            (0.002, [1.002, 0.998, 1.001, 1.0]),
        ] {
            let mut shown = shown("a.txt", &weights);
            shown.epsilon = Some(epsilon);
            assert_eq!(tokens(&shown), near, "epsilon {epsilon}");
        }
    }

    #[test]
    fn shades_are_as_the_legend_says() {
        let shown = shown("a.txt", &[0.84, 0.89, 0.94, 1.06, 1.11, 1.16]);
        let [x, y, z] = BELOW;
        let [a, b, c] = ABOVE;
        let text = row(&shown, Color::Always);
        let mut lines = text.lines().skip(1);
        let swatch = |shade| format!("{shade}  {RESET}");
        assert_eq!(
            lines.next().unwrap(),
            format!(
                "weight: {} below 0.85, {} below 0.9, {} below 0.95, none to 1.05, {} above 1.05, {} above 1.1, {} above 1.15",
                swatch(z),
                swatch(y),
                swatch(x),
                swatch(a),
                swatch(b),
                swatch(c)
            )
        );
        let tokens: String = [z, y, x, a, b, c]
            .iter()
            .zip(1..)
            .map(|(shade, i)| format!("{shade}t{i}{RESET}"))
            .collect();
        assert_eq!(lines.last().unwrap(), format!("t0{RESET}{tokens}"));
    }

    #[test]
    fn without_weights_surprise_is_coloured() {
        let mut shown = shown("a.txt", &[1.0; 4]);
        shown.stored.scored.weights = None;
        shown.stored.scored.rl_logprobs = vec![-0.1, -1.9, -2.1, -9.0];
        let [a, _, c] = ABOVE;
        assert_eq!(
            tokens(&shown),
            format!("t0{RESET}t1{RESET}t2{RESET}{a}t3{RESET}{c}t4{RESET}")
        );
        assert!(row(&shown, Color::Always).contains("none up to 2 nats"));
    }

    #[test]
    fn a_row_can_not_move_the_cursor() {
        let mut shown = shown("a\x1b[2J.txt", &[1.0, 1.1]);
        shown.pieces = Some(vec![
            (1, "a".to_owned()),
            (2, "\x1b[31m\r\n\x07b".to_owned()),
        ]);
        for color in [Color::Always, Color::Never] {
            let mut text = row(&shown, color);
            for shade in BELOW.into_iter().chain(ABOVE).chain([RESET]) {
                text = text.replace(shade, "");
            }
            let moves = text.chars().any(|c| c.is_control() && c != '\n');
            assert!(!moves, "{text:?}");
        }
    }
}
