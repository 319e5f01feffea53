//! Training that is configured, and that goes wrong; below it, training that is interrupted or evaluated.

mod evaluation;
mod extension;
mod interruption;

use std::collections::{BTreeMap, BTreeSet};

use remit::shard::layout::Description;
use safetensors::SafeTensors;
use serde_json::Value;

use crate::harness::{ANNEAL, INSPECT, Run, SCORE, Workspace, visit};

/// A set of about 8,000 tokens, scored with a pair of tiny models.
fn scored() -> Workspace {
    let workspace = Workspace::new();
    workspace.write_corpus("corpus/a.jsonl", 100);
    workspace.write_corpus("corpus/b.jsonl", 60);
    workspace
        .command(SCORE)
        .models("tiny-llama", "tiny-llama-base")
        .args("corpus -o set --seq-len 128")
        .ok();
    workspace
}

/// A run with these options, and with those below that are not among them.
fn anneal<'a>(workspace: &'a Workspace, output: &str, options: &str) -> Run<'a> {
    let mut run = workspace
        .command(ANNEAL)
        .args("--weights set -o")
        .arg(output)
        .args(options);
    for (flag, value) in [
        ("--lr", "1e-3"),
        ("--batch-tokens", "1500"),
        ("--save-every", "1"),
        ("--steps", "20"),
    ] {
        if !options.split(' ').any(|word| word == flag) {
            run = run.arg(flag).arg(value);
        }
    }
    run
}

/// What a run leaves that has to be the same whenever it was interrupted.
fn result(workspace: &Workspace, output: &str) -> (Vec<Value>, Vec<u8>) {
    visit(&workspace.path(output), &mut |path| {
        let name = path.file_name().unwrap().to_string_lossy();
        assert!(!name.starts_with('.'), "{name} was left behind");
    });
    let weights = workspace.read(&format!("{output}/model.safetensors"));
    (workspace.metrics(output), weights)
}

#[test]
fn the_micro_batch_changes_no_bit() {
    let workspace = scored();
    let mut expected = None;
    for micro in [1024, 1100, 1500, 100_000] {
        let options = format!("--z-loss 1e-4 --micro-batch-tokens {micro}");
        anneal(&workspace, "run", &options).ok();
        let found = result(&workspace, "run");
        workspace.remove("run");
        assert!(
            expected.get_or_insert_with(|| found.clone()) == &found,
            "{micro}"
        );
    }
}

#[test]
fn weightings_schedules_and_normalizers_do_what_they_say() {
    let workspace = scored();
    let metrics = |more: &str| {
        anneal(&workspace, "run", &format!("--steps 8 {more}")).ok();
        let metrics = workspace.metrics("run");
        workspace.remove("run");
        metrics
    };
    let number = |step: &Value, key: &str| step[key].as_f64().unwrap();
    // Of excess-top-k the mean weight is the share that is selected, rounded up row by row.
    let selected = metrics("--weighting excess-top-k --top-k-fraction 0.25");
    for step in &selected {
        assert!(
            (0.25..0.28).contains(&number(step, "weight_mean")),
            "{step}"
        );
        assert_eq!(number(step, "weight_at_bounds"), 1.0);
    }
    let by_targets = metrics("--weighting excess-top-k --top-k-fraction 0.25 --normalize targets");
    let ratio = number(&by_targets[0], "loss") / number(&selected[0], "loss");
    assert!((ratio - number(&selected[0], "weight_mean")).abs() < 1e-6);
    // All of them selected is plain next-token prediction.
    assert_eq!(
        metrics("--weighting excess-top-k --top-k-fraction 1")[7]["ntp_loss"],
        metrics("--weighting uniform")[7]["ntp_loss"]
    );
    let rates = |more: &str| -> Vec<f64> {
        metrics(more)
            .iter()
            .map(|step| number(step, "lr"))
            .collect()
    };
    let close = |found: Vec<f64>, expected: [f64; 8]| {
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-12, "{found} {expected}");
        }
    };
    close(
        rates("--schedule constant --warmup-steps 4"),
        [0.25e-3, 0.5e-3, 0.75e-3, 1e-3, 1e-3, 1e-3, 1e-3, 1e-3],
    );
    let linear: [f64; 8] = std::array::from_fn(|i| 1e-4 + 9e-4 * (8 - i) as f64 / 8.0);
    close(rates("--min-lr 1e-4"), linear);
    let root: [f64; 8] = std::array::from_fn(|i| 1e-3 * (1.0 - (i as f64 / 8.0).sqrt()));
    close(rates("--schedule 1-sqrt"), root);
    let cosine: [f64; 8] =
        std::array::from_fn(|i| 0.5e-3 * (1.0 + (std::f64::consts::PI * i as f64 / 8.0).cos()));
    close(rates("--schedule cosine"), cosine);
    assert!(number(&metrics("--z-loss 1e-2")[0], "z_loss") > 0.0);
    // Without centring, weights do not average to about 1 where the models differ throughout.
    assert_ne!(
        metrics("--center none --epsilon 0.9")[0]["weight_mean"],
        metrics("--epsilon 0.9")[0]["weight_mean"]
    );
}

#[test]
fn a_length_in_tokens_ends_with_the_step_that_reaches_it() {
    let workspace = scored();
    let tokens = |more: &str| -> Vec<u64> {
        let run = workspace
            .command(ANNEAL)
            .args("--weights set -o run --batch-tokens 1500");
        run.args(more).ok();
        let metrics = workspace.metrics("run");
        workspace.remove("run");
        metrics
            .iter()
            .map(|step| step["tokens"].as_u64().unwrap())
            .collect()
    };
    let one_epoch = tokens("--epochs 1");
    let per_epoch = *one_epoch.last().unwrap();
    assert_eq!(tokens("--tokens 1"), one_epoch[..1]);
    let wanted = one_epoch[2] + 1;
    assert_eq!(tokens(&format!("--tokens {wanted}")), one_epoch[..4]);
    let two = tokens(&format!("--tokens {}", per_epoch + 1));
    assert_eq!(two.len(), one_epoch.len() + 1);
    assert_eq!(tokens("--epochs 2").last(), Some(&(2 * per_epoch)));
}

#[test]
fn a_config_file_gives_options_and_flags_win() {
    let workspace = scored();
    workspace.write(
        "run.toml",
        "# a comment\nweights = \"set\"\nlr = 2e-3\nbatch-tokens = 1500\nepochs = 1\nclip = \"none\"\njson = false\n\
         activation-checkpointing = true\nweighting = \"uniform\"\n",
    );
    let print = |more: &str| {
        let run = workspace
            .command(ANNEAL)
            .args("--config run.toml --print-config");
        run.args(more).ok().stdout
    };
    let effective: BTreeMap<String, toml::Value> =
        toml::from_str(&print("--steps 3 --lr 1e-3")).unwrap();
    assert_eq!(effective["lr"].as_float(), Some(1e-3));
    assert_eq!(effective["steps"].as_integer(), Some(3));
    assert!(
        !effective.contains_key("epochs"),
        "--steps was typed, so the file's epochs do not count"
    );
    assert_eq!(effective["clip"].as_str(), Some("none"));
    assert_eq!(effective["weighting"].as_str(), Some("uniform"));
    assert_eq!(effective["activation-checkpointing"].as_bool(), Some(true));
    assert_eq!(effective["min-lr"].as_float(), Some(0.0));
    assert!(!workspace.path("annealed").exists());

    // What is printed is a config that gives the same again.
    let printed = print("--steps 3");
    workspace.write("printed.toml", &printed);
    let again = workspace
        .command(ANNEAL)
        .args("--config printed.toml --print-config")
        .ok();
    assert_eq!(again.stdout, printed);
    workspace
        .command(ANNEAL)
        .args("--config printed.toml -o from-file")
        .ok();
    workspace
        .command(ANNEAL)
        .args("--weights set --lr 2e-3 --batch-tokens 1500 --steps 3 --clip none --weighting uniform -o typed")
        .ok();
    assert!(result(&workspace, "from-file") == result(&workspace, "typed"));
    let run: Value = serde_json::from_slice(&workspace.read("from-file/run.json")).unwrap();
    assert_eq!(run["config"]["lr"], 2e-3);
    assert_eq!(run["settings"]["schedule"]["num_steps"], 3);
}

/// A model in which one token's embedding is so large that rows with it overflow.
fn poisoned() -> Workspace {
    let workspace = Workspace::new();
    workspace.write_corpus("corpus/a.jsonl", 40);
    workspace
        .command(SCORE)
        .models("tiny-olmo2", "tiny-olmo2")
        .args("corpus -o set")
        .ok();
    workspace.copy_model("tiny-olmo2", "model");
    let before = workspace.read("model/model.safetensors");
    let (_, header) = SafeTensors::read_metadata(&before).unwrap();
    let info = header.info("model.embed_tokens.weight").unwrap();
    let (vocab, width) = (info.shape[0], info.shape[1]);
    let data = before.len() - header.data_len() + info.data_offsets.0;
    let bytes_each = (info.data_offsets.1 - info.data_offsets.0) / (vocab * width);
    // A token that some of the rows have, but not many.
    workspace
        .command(INSPECT)
        .args("export set --tokens tokens.csv")
        .ok();
    let mut rows_with: BTreeMap<usize, BTreeSet<&str>> = BTreeMap::new();
    let tokens = String::from_utf8(workspace.read("tokens.csv")).unwrap();
    for line in tokens.lines() {
        let fields: Vec<&str> = line.split(',').collect();
        // Texts may hold line breaks, and what follows these is no beginning of a line.
        if fields.get(2) == Some(&"\"a.jsonl\"")
            && let Ok(id) = fields[4].parse()
        {
            rows_with.entry(id).or_default().insert(fields[0]);
        }
    }
    let token = *rows_with
        .iter()
        .find(|(_, rows)| (3..=5).contains(&rows.len()))
        .unwrap()
        .0;
    workspace.damage("model/model.safetensors", |bytes| {
        for i in 0..width {
            let at = data + (token * width + i) * bytes_each;
            let value = if i % 2 == 0 { 3.0e38_f32 } else { -3.0e38 };
            let value = value.to_le_bytes();
            bytes[at..at + bytes_each].copy_from_slice(&value[4 - bytes_each..]);
        }
    });
    workspace
}

#[test]
fn a_loss_that_is_not_finite_stops_the_run_or_is_skipped_and_counted() {
    let workspace = poisoned();
    let run = |more: &str| {
        let run = workspace.command(ANNEAL);
        run.args("--weights set --model model -o run --batch-tokens 200 --steps 30 --lr 1e-4")
            .args(more)
    };
    let ended = run("").run();
    ended.check(
        ended.status.code() == Some(1)
            && ended.stderr.contains("error: step ")
            && ended.stderr.contains("as the log-probability of token")
            && ended.stderr.contains("row_id ")
            && ended.stderr.contains(" of a.jsonl, "),
        "the step and the rows should be named",
    );
    assert!(!workspace.path("run/config.json").exists());
    workspace.remove("run");

    run("--save-every 1").run();
    let ended = run("--save-every 1").run();
    ended.check(
        ended
            .stderr
            .contains("error: training, resumed from run/checkpoints/step-")
            && ended.stderr.contains("row_id "),
        "the checkpoint may be the cause",
    );
    workspace.remove("run");

    let ended = run("--on-nonfinite skip").ok();
    let metrics = workspace.metrics("run");
    assert_eq!(metrics.len(), 30);
    let skipped: Vec<&Value> = metrics
        .iter()
        .filter(|step| step["skipped"] == true)
        .collect();
    assert!(
        !skipped.is_empty() && skipped.len() < 15,
        "{} skipped",
        skipped.len()
    );
    for step in &skipped {
        assert_eq!(
            (&step["loss"], &step["grad_norm"]),
            (&Value::Null, &Value::Null)
        );
        assert!(step["targets"].as_u64().unwrap() > 0);
    }
    ended.check(
        ended
            .stdout
            .contains(&format!("{} steps were skipped", skipped.len())),
        "skipped steps are counted",
    );
    let provenance: Value = serde_json::from_slice(&workspace.read("run/remit.json")).unwrap();
    assert_eq!(provenance["skipped_steps"], skipped.len());
}

#[test]
fn steps_that_are_skipped_one_after_another_stop_the_run() {
    let workspace = scored();
    let ended = anneal(
        &workspace,
        "run",
        "--lr 1e38 --weight-decay 0 --clip none --on-nonfinite skip --steps 40 --save-every 1000",
    )
    .run();
    ended.check(
        ended.status.code() == Some(1)
            && ended
                .stderr
                .contains("10 steps were skipped one after another, and the next is no better"),
        "a run that has diverged does not end as if it had not",
    );
}

#[test]
fn a_run_that_does_not_fit_is_refused_with_what_to_change() {
    let workspace = scored();
    let ended = anneal(&workspace, "run", "--max-memory-bytes 1M").run();
    ended.check(
        ended.status.code() == Some(2)
            && ended.stderr.contains("memory: about ")
            && ended.stderr.contains(" = weights ")
            && ended.stderr.contains("--max-memory-bytes allows 1 MB")
            && ended.stderr.contains("no option makes it fit"),
        "nothing fits into a megabyte",
    );
    let ended = anneal(
        &workspace,
        "run",
        "--micro-batch-tokens 1000000 --batch-tokens 1000000 --max-memory-bytes 80M",
    )
    .run();
    ended.check(
        ended.status.code() == Some(2) && ended.stderr.contains("hint: with --"),
        "a smaller micro-batch would fit",
    );
}

#[test]
fn weights_above_the_limit_are_sharded_with_an_index() {
    let workspace = scored();
    anneal(&workspace, "one", "").ok();
    anneal(&workspace, "several", "--max-shard-bytes 100K").ok();
    assert!(!workspace.path("several/model.safetensors").exists());
    let index: Value =
        serde_json::from_slice(&workspace.read("several/model.safetensors.index.json")).unwrap();
    let map = index["weight_map"].as_object().unwrap();
    let one = workspace.read("one/model.safetensors");
    let one = SafeTensors::deserialize(&one).unwrap();
    let mut total = 0;
    for name in one.names() {
        let file = workspace.read(&format!("several/{}", map[name].as_str().unwrap()));
        let shard = SafeTensors::deserialize(&file).unwrap();
        let (a, b) = (one.tensor(name).unwrap(), shard.tensor(name).unwrap());
        assert_eq!(
            (a.dtype(), a.shape(), a.data()),
            (b.dtype(), b.shape(), b.data())
        );
        total += a.data().len();
    }
    assert_eq!(map.len(), one.len());
    assert_eq!(index["metadata"]["total_size"], total);
    workspace
        .command(INSPECT)
        .args("model several --check-values")
        .ok();
}

#[test]
fn the_printed_order_is_that_of_training() {
    let workspace = scored();
    let ids = |more: &str| -> Vec<Vec<u64>> {
        let run = workspace
            .command(INSPECT)
            .args("order set --batch-tokens 1500")
            .args(more)
            .ok();
        run.stdout
            .lines()
            .map(|line| {
                let step: Value = serde_json::from_str(line).unwrap();
                let ids = step["row_ids"].as_array().unwrap();
                ids.iter().map(|id| id.as_u64().unwrap()).collect()
            })
            .collect()
    };
    let epoch = ids("");
    assert_eq!(ids("--steps 8").len(), 8);
    assert_eq!(ids("--steps 2"), epoch[..2]);
    assert_ne!(ids("--seed 1"), epoch);
    let manifest: Value = workspace.description("set", Description::Manifest);
    let mut all = epoch.concat();
    all.sort_unstable();
    assert_eq!(manifest["totals"]["rows"], all.len());
    all.dedup();
    assert_eq!(manifest["totals"]["rows"], all.len());
    assert!(ids("--holdout 0.3").concat().len() < all.len());
}
