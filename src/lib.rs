//! remit prepares and runs RL-guided mid-training (ReMiT) of language models, offline.
//!
//! A corpus is scored once with an RL-tuned model, one log-probability a token is stored, and any
//! number of later training runs weight their next-token loss with it.
//!
//! ```text
//! corpus -> documents -> ids -> rows -> log-probs -> shards -> steps -> annealed model
//!     corpus     tokenize  pack    model       shard     batch    loss, optim
//! ```
//!
//! The binaries call [`cli`], which calls [`pipeline`], the only module where the stages meet.

pub mod batch;
pub mod checkpoint;
pub mod cli;
pub mod corpus;
pub mod demo;
pub mod distill;
pub mod escape;
pub mod fs;
pub mod guard;
pub mod loss;
pub mod model;
pub mod optim;
pub mod pack;
pub mod pipeline;
pub mod schedule;
pub mod shard;
pub mod tensorboard;
pub mod tokenize;
pub mod types;
pub mod weight;
