//! Names of tensors that differ from those of a model of text: those of multimodal checkpoints, which are followed,
//! and those that wrappers of other libraries leave behind, which are named.

use std::collections::BTreeSet;

use crate::model::architecture::{EMBEDDING, LM_HEAD};

/// Prefix of all tensors of a model of text but its head.
const TEXT_PREFIX: &str = "model.";

/// Where a multimodal checkpoint has its text part.
#[derive(Debug)]
pub(super) struct Layout {
    /// What stands in place of `model.`.
    prefix: &'static str,
    /// What stands in place of `lm_head.weight`.
    head: &'static str,
}

/// Every layout that transformers reads, the more special first: a prefix of one is a name's beginning in another.
const LAYOUTS: [Layout; 4] = [
    Layout {
        prefix: "language_model.model.",
        head: "language_model.lm_head.weight",
    },
    Layout {
        prefix: "model.language_model.",
        head: LM_HEAD,
    },
    Layout {
        prefix: "model.text_model.",
        head: LM_HEAD,
    },
    Layout {
        prefix: TEXT_PREFIX,
        head: LM_HEAD,
    },
];

impl Layout {
    /// Finds the layout whose embedding is there.
    pub(super) fn find(has: impl Fn(&str) -> bool) -> Option<&'static Self> {
        LAYOUTS.iter().find(|layout| has(&layout.stored(EMBEDDING)))
    }

    /// Returns the name of a tensor in the files.
    pub(super) fn stored(&self, name: &str) -> String {
        match name.strip_prefix(TEXT_PREFIX) {
            _ if name == LM_HEAD => self.head.to_owned(),
            Some(rest) => format!("{}{rest}", self.prefix),
            None => name.to_owned(),
        }
    }

    /// Returns the name that a model of text has for a tensor of the files; `None` for one of another part.
    pub(super) fn of_text(&self, stored: &str) -> Option<String> {
        if stored == self.head {
            return Some(LM_HEAD.to_owned());
        }
        let rest = stored.strip_prefix(self.prefix)?;
        Some(format!("{TEXT_PREFIX}{rest}"))
    }
}

/// Parts of names that wrappers of PyTorch and of other libraries leave behind, at the beginning or in between.
const WRAPPERS: [&str; 7] = [
    "_orig_mod.",
    "_fsdp_wrapped_module.",
    "_checkpoint_wrapped_module.",
    "base_model.model.",
    "module.",
    "_forward_module.",
    "language_model.",
];

/// Tells how all names that are asked for differ from those that are stored, and the way out; `None` if it is not
/// the same for all of them.
pub(super) fn other_names(asked: &[&str], stored: &[&str]) -> Option<(String, String)> {
    let is_any = |part: &str| stored.iter().any(|name| name.contains(part));
    if is_any(".lora_A.") || is_any(".lora_B.") {
        return Some((
            "are those of an adapter and of the model it is for, not merged".to_owned(),
            "merge them in Python: peft's model.merge_and_unload().save_pretrained(NEW)".to_owned(),
        ));
    }
    if stored.contains(&"tok_embeddings.weight") {
        return Some((
            "have the names of the original format of Meta and Mistral, tok_embeddings.weight and others".to_owned(),
            "download the model*.safetensors of the same model, or convert them with the convert_..._weights_to_hf.py of transformers".to_owned(),
        ));
    }
    // A tied head need not be there.
    let asked: Vec<&str> = asked
        .iter()
        .copied()
        .filter(|name| *name != LM_HEAD)
        .collect();
    let names: BTreeSet<&str> = stored.iter().copied().collect();
    let is_all = |stored_name: &dyn Fn(&str) -> String| {
        asked
            .iter()
            .all(|name| names.contains(stored_name(name).as_str()))
    };
    let python = |change: &str| {
        format!(
            "rename them in Python, in every file: from safetensors.torch import load_file, save_file; \
             save_file({{{change}: v for k, v in load_file(FILE).items()}}, FILE, metadata={{\"format\": \"pt\"}})"
        )
    };
    let prefixes = stored
        .iter()
        .filter_map(|name| name.strip_suffix(EMBEDDING));
    for prefix in prefixes.filter(|prefix| !prefix.is_empty()) {
        if is_all(&|name| format!("{prefix}{name}")) {
            return Some((
                format!(
                    "all have {prefix} before the names that config.json asks for, as in {prefix}{EMBEDDING}"
                ),
                python(&format!("k.removeprefix({prefix:?})")),
            ));
        }
    }
    if is_all(&|name| name.strip_prefix(TEXT_PREFIX).unwrap_or(name).to_owned()) {
        return Some((
            format!("all lack the {TEXT_PREFIX} before their names, as AutoModel saves them"),
            "load the model with AutoModelForCausalLM and save it again; without a stored head its output is that of a \
             tied one, or random"
                .to_owned(),
        ));
    }
    let unwrapped = |name: &str| {
        WRAPPERS
            .iter()
            .fold(name.to_owned(), |name, wrapper| name.replace(wrapper, ""))
    };
    let bare: BTreeSet<String> = stored.iter().map(|name| unwrapped(name)).collect();
    if asked.iter().all(|name| bare.contains(*name)) {
        let found: Vec<&str> = WRAPPERS
            .into_iter()
            .filter(|wrapper| is_any(wrapper))
            .collect();
        let change = found
            .iter()
            .map(|wrapper| format!(".replace({wrapper:?}, \"\")"))
            .collect::<String>();
        return Some((
            format!(
                "have the names that config.json asks for, with {} in them, which a wrapper left behind",
                found.join(" and ")
            ),
            python(&format!("k{change}")),
        ));
    }
    None
}
