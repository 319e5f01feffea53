//! The demo pair: a tiny base model and the same model after reinforcement learning on arithmetic,
//! compiled into the program so that both commands run with nothing else at hand.
//!
//! fixtures/models/README.md says how they were made and how they score.

use crate::model::{Builtin, ModelSource};

/// What a manifest calls a built-in model: this and its name.
pub const PREFIX: &str = "builtin:";

macro_rules! builtin {
    ($name:literal) => {
        Builtin {
            name: concat!("builtin:", $name),
            files: &[
                (
                    "config.json",
                    include_bytes!(concat!("../fixtures/models/", $name, "/config.json")),
                ),
                (
                    "generation_config.json",
                    include_bytes!(concat!(
                        "../fixtures/models/",
                        $name,
                        "/generation_config.json"
                    )),
                ),
                (
                    "model.safetensors",
                    include_bytes!(concat!("../fixtures/models/", $name, "/model.safetensors")),
                ),
                (
                    "tokenizer.json",
                    include_bytes!(concat!("../fixtures/models/", $name, "/tokenizer.json")),
                ),
                (
                    "tokenizer_config.json",
                    include_bytes!(concat!(
                        "../fixtures/models/",
                        $name,
                        "/tokenizer_config.json"
                    )),
                ),
            ],
        }
    };
}

static BASE: Builtin = builtin!("demo-base");
static RL: Builtin = builtin!("demo-rl");

/// The model before reinforcement learning.
pub fn base_model() -> ModelSource {
    ModelSource::Builtin(&BASE)
}

/// The model after reinforcement learning.
pub fn rl_model() -> ModelSource {
    ModelSource::Builtin(&RL)
}

/// The built-in model of that name, as a manifest records it.
pub fn by_name(name: &str) -> Option<ModelSource> {
    [&BASE, &RL]
        .into_iter()
        .find(|builtin| builtin.name == name)
        .map(ModelSource::Builtin)
}
