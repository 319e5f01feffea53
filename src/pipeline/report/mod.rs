//! remit-inspect report and sweep: a page that shows what the weights do to a corpus, and the numbers behind its sliders.
//!
//! A set is read once, in order (`pass`). Sums by source are exact (`tally`), also for other formulas than the set's own,
//! which are read off fine bins of differences (`histogram`). Rows are drawn for the eye alone (`sample`).

mod data;
mod extremes;
mod histogram;
mod kinds;
mod page;
mod pass;
mod repeats;
mod runs;
mod sample;
mod sweep;
mod tally;
mod text;
mod verdict;
mod write;

pub use sweep::{Sweep, SweepOptions, SweptNumbers, SweptWeights, sweep};
pub use write::{DEFAULT_SAMPLE_TOKENS, MAX_PAGE_BYTES, ReportOptions, Written, write};
