//! remit prepares and runs RL-guided mid-training (ReMiT) of language models, offline.
//!
//! A corpus is scored once with an RL-tuned model, one log-probability a token is stored, and any
//! number of later training runs weight their next-token loss with it.

pub mod corpus;
pub mod fs;
pub mod model;
pub mod optim;
pub mod pack;
pub mod tokenize;
pub mod types;
