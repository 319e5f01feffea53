//! Tells what a folder is that can't be used as a model, and the way out.

use std::path::Path;

use super::names::{INDEX_FILE, SINGLE_FILE};
use crate::escape::Show as _;
use crate::fs;

/// Most subfolders that a hint lists.
const MAX_LISTED: usize = 3;

/// Name of the description of a model, which every kind of Hugging Face directory has.
const CONFIG_FILE: &str = "config.json";

/// Returns the hint of a model's absent file, as a line that begins with `hint:`; empty if there is none.
/// Whatever can't be listed gives none: the error that is about to be shown is the better one.
pub(super) fn of_missing(dir: &Path, file: &str) -> String {
    let names = names_in(dir);
    let hint = if names.iter().any(|name| name == file) {
        // It is listed, but can't be opened: a link into a cache that was not copied with it.
        Some(format!(
            "{file} is a link to a file that is not there; copy a snapshot of the hub's cache with cp -rL, or download \
             the model again"
        ))
    } else if file == CONFIG_FILE {
        adapter(dir, &names)
            .or_else(|| places_with_a_config(dir, &names))
            .or_else(|| other_format(&names))
    } else if file == SINGLE_FILE {
        adapter(dir, &names)
            .or_else(|| incomplete(&names))
            .or_else(|| other_format(&names))
    } else {
        None
    };
    hint.map_or_else(String::new, |hint| format!("\nhint: {hint}"))
}

/// Returns the hint of a path that is no folder, as a line that begins with `hint:`; empty if there is none.
pub(super) fn of_no_folder(path: &Path) -> String {
    let text = path.to_string_lossy();
    let hint = if fs::exists(path).unwrap_or(false) {
        if text.ends_with(".gguf") {
            GGUF.to_owned()
        } else {
            "it is a file; give the folder that it lies in".to_owned()
        }
    } else if let Some(id) = hub_id(&text) {
        let folder = id.rsplit('/').next().unwrap_or(id);
        format!(
            "remit downloads nothing; if it is a model of the Hugging Face hub: hf download {id} --local-dir {folder}"
        )
    } else {
        return String::new();
    };
    format!("\nhint: {hint}")
}

/// Returns the hub's name of a model, `OWNER/NAME`, if a text can be one, or a link to it.
fn hub_id(text: &str) -> Option<&str> {
    let id = ["https://huggingface.co/", "https://hf.co/", "hf://"]
        .iter()
        .find_map(|prefix| text.strip_prefix(prefix))
        .unwrap_or(text);
    // Of a link to a branch or a file, the name is the beginning.
    let id = id.split("/tree/").next()?.split("/blob/").next()?;
    let (owner, name) = id.trim_end_matches('/').split_once('/')?;
    let is_name = |part: &str| {
        let mut chars = part.chars();
        chars.next().is_some_and(char::is_alphanumeric)
            && chars.all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    };
    (is_name(owner) && is_name(name)).then(|| id.trim_end_matches('/'))
}

const GGUF: &str = "GGUF files are for llama.cpp, and mostly quantized; download the safetensors that they were made \
                    from, or let transformers convert one: AutoModelForCausalLM.from_pretrained(DIR, gguf_file=FILE)\
                    .save_pretrained(NEW)";

fn names_in(dir: &Path) -> Vec<String> {
    let names = fs::list(dir).unwrap_or_default();
    names
        .into_iter()
        .filter_map(|name| name.into_string().ok())
        .collect()
}

/// Returns what to do with a folder that holds an adapter, if it does.
fn adapter(dir: &Path, names: &[String]) -> Option<String> {
    if !names.iter().any(|name| name.starts_with("adapter_")) {
        return None;
    }
    let base = fs::read(&dir.join("adapter_config.json"))
        .ok()
        .and_then(|text| serde_json::from_slice::<serde_json::Value>(&text).ok())
        .and_then(|config| Some(config.get("base_model_name_or_path")?.as_str()?.to_owned()));
    let base = base.map_or(String::new(), |base| format!(" to {base}"));
    Some(format!(
        "it holds an adapter{base}, such as LoRA, and not a model; merge them in Python: \
         peft.AutoPeftModelForCausalLM.from_pretrained(DIR).merge_and_unload().save_pretrained(NEW), and save the \
         tokenizer to NEW as well"
    ))
}

/// Returns the folders below that hold a model, if there are any.
fn places_with_a_config(dir: &Path, names: &[String]) -> Option<String> {
    let has = |name: &str| names.iter().any(|n| n == name);
    let has_config = |path: &Path| fs::exists(&path.join(CONFIG_FILE)).unwrap_or(false);
    if has("snapshots") {
        let snapshots = dir.join("snapshots");
        let current = fs::read(&dir.join("refs").join("main")).ok();
        let current = current.and_then(|text| String::from_utf8(text).ok());
        let current = current.map(|name| snapshots.join(name.trim()));
        let place = current.filter(|path| has_config(path)).or_else(|| {
            let all = names_in(&snapshots);
            all.iter()
                .map(|name| snapshots.join(name))
                .find(|path| has_config(path))
        });
        return Some(match place {
            Some(place) => format!(
                "it is a model's place in the cache of the hub; give the snapshot in it: {}",
                place.shown()
            ),
            None => "it is a model's place in the cache of the hub, but no snapshot in it has a config.json; download it again".to_owned(),
        });
    }
    if has("_remit") {
        return Some(format!(
            "it is a set that remit-score made, and no model; remit-inspect {} describes it",
            dir.shown()
        ));
    }
    let mut places = Vec::new();
    for name in names {
        let path = dir.join(name);
        if has_config(&path) {
            places.push(path.shown().to_string());
        } else if name.starts_with("models--") {
            places.extend(
                names_in(&path.join("snapshots"))
                    .iter()
                    .map(|snapshot| path.join("snapshots").join(snapshot))
                    .filter(|path| has_config(path))
                    .map(|path| path.shown().to_string()),
            );
        }
    }
    let more = places.len().saturating_sub(MAX_LISTED);
    places.truncate(MAX_LISTED);
    match places.as_slice() {
        [] => None,
        places => Some(format!(
            "there are models further down: {}{}",
            places.join(", "),
            match more {
                0 => String::new(),
                more => format!(", and {more} more"),
            }
        )),
    }
}

/// Returns which files of a download are not there, if that can be told.
fn incomplete(names: &[String]) -> Option<String> {
    let ends = |ending: &str| names.iter().find(|name| name.ends_with(ending));
    if let Some(name) = ends(".incomplete").or_else(|| ends(".part")) {
        return Some(format!(
            "{name} is a download that was not finished; download the model again"
        ));
    }
    let is_shard = |name: &&String| name.starts_with("model-") && name.ends_with(".safetensors");
    let shard = names.iter().find(is_shard)?;
    Some(format!(
        "{shard} is one of several shards, which {INDEX_FILE} lists; download that too"
    ))
}

/// Returns what to do with weights in another format than safetensors of transformers, if there are some.
fn other_format(names: &[String]) -> Option<String> {
    let ends = |endings: &[&str]| names.iter().any(|n| endings.iter().any(|e| n.ends_with(e)));
    let starts = |start: &str| names.iter().any(|name| name.starts_with(start));
    let resave = "load the model with transformers and save it again, which writes safetensors: \
                  AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(NEW)";
    if starts("consolidated.") || starts("params.json") {
        return Some(
            "consolidated.* and params.json are the original format of Mistral and Meta, with other names of tensors; \
             download the files of the same model that begin with model, and config.json, or convert them with the \
             convert_..._weights_to_hf.py of transformers"
                .to_owned(),
        );
    }
    if ends(&[".gguf"]) {
        return Some(GGUF.to_owned());
    }
    if ends(&[".bin", ".pt", ".pth", ".ckpt"]) {
        return Some(format!(
            ".bin and .pt files are Python pickles, which can run code; {resave}"
        ));
    }
    if ends(&[".h5", ".msgpack"]) {
        return Some(format!(
            "the weights are those of TensorFlow or Flax; {resave}"
        ));
    }
    if ends(&[".onnx"]) {
        return Some(
            "ONNX files are for inference alone; download the safetensors that they were made from"
                .to_owned(),
        );
    }
    let other = names.iter().find(|name| name.ends_with(".safetensors"))?;
    Some(format!(
        "it holds {other}; if these are the weights, name them {SINGLE_FILE}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_hub_are_told_from_paths() {
        for (text, id) in [
            ("Qwen/Qwen3-0.6B", Some("Qwen/Qwen3-0.6B")),
            ("https://huggingface.co/org/m.1/tree/main", Some("org/m.1")),
            ("hf://org/m", Some("org/m")),
            ("Qwen/Qwen3-0.6B/", Some("Qwen/Qwen3-0.6B")),
            ("nowhere", None),
            ("./a/b", None),
            ("../b", None),
            ("/a/b", None),
            ("a/b/c", None),
            ("a b/c", None),
        ] {
            assert_eq!(hub_id(text), id, "{text}");
        }
    }
}
