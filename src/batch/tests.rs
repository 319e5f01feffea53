//! Orders, cursors, holdouts and micro-batches.

use super::*;
use crate::shard::tests::finished_set;
use proptest::prelude::*;

fn ids(rows: &[StoredRow]) -> Vec<u32> {
    rows.iter().map(|row| row.scored.input_ids[0]).collect()
}

fn epoch(order: &Order<'_>, epoch: u64, batch_tokens: usize) -> Vec<Step> {
    order
        .steps_from(Cursor { epoch, rows: 0 }, batch_tokens)
        .collect::<Result<_, _>>()
        .unwrap()
}

#[test]
fn every_row_comes_once_an_epoch_and_every_epoch_in_another_order() {
    let dir = tempfile::tempdir().unwrap();
    let set = finished_set(dir.path(), 3, 40);
    for window_tokens in [1, 200, SHUFFLE_WINDOW_TOKENS] {
        let order = Order::with_window(&set, 1, None, window_tokens).unwrap();
        let rows = |e, seed_order: &Order<'_>| {
            let steps = epoch(seed_order, e, 64);
            assert_eq!(
                steps.iter().map(Step::num_tokens).collect::<Vec<_>>(),
                seed_order.step_tokens(e, 64)
            );
            let row_ids = |step: &Step| step.rows.iter().map(|row| row.row_id).collect::<Vec<_>>();
            assert_eq!(
                steps.iter().map(row_ids).collect::<Vec<_>>(),
                seed_order.row_ids(e, 64)
            );
            assert!(steps.iter().all(|step| step.epoch == e));
            ids(&steps
                .into_iter()
                .flat_map(|step| step.rows)
                .collect::<Vec<_>>())
        };
        let first = rows(0, &order);
        let mut sorted = first.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..120).collect::<Vec<_>>());
        assert_eq!(first, rows(0, &order));
        assert_ne!(first, rows(1, &order));
        let other = Order::with_window(&set, 2, None, window_tokens).unwrap();
        assert_ne!(first, rows(0, &other));
    }
}

#[test]
fn the_order_does_not_depend_on_the_step_size() {
    let dir = tempfile::tempdir().unwrap();
    let set = finished_set(dir.path(), 2, 30);
    let order = Order::new(&set, 9, None).unwrap();
    let rows = |batch_tokens| -> Vec<StoredRow> {
        epoch(&order, 0, batch_tokens)
            .into_iter()
            .flat_map(|step| step.rows)
            .collect()
    };
    assert_eq!(rows(1), rows(100));
    assert_eq!(rows(1), rows(1_000_000));
    assert_eq!(epoch(&order, 0, 1).len(), 60);
    assert_eq!(epoch(&order, 0, 1_000_000).len(), 1);
}

#[test]
fn a_cursor_leads_to_the_very_steps_that_would_have_followed() {
    let dir = tempfile::tempdir().unwrap();
    let set = finished_set(dir.path(), 3, 40);
    for window_tokens in [1, 200, SHUFFLE_WINDOW_TOKENS] {
        let order = Order::with_window(&set, 5, Some(0.1), window_tokens).unwrap();
        let all = epoch(&order, 1, 64);
        for (i, step) in all.iter().enumerate() {
            let rest: Vec<Step> = order
                .steps_from(step.end, 64)
                .collect::<Result<_, _>>()
                .unwrap();
            assert_eq!(rest, all[i + 1..]);
        }
    }
}

#[test]
fn documents_are_held_out_whole_whatever_the_seed_and_never_trained_on() {
    let dir = tempfile::tempdir().unwrap();
    let set = finished_set(dir.path(), 3, 400);
    let order = Order::new(&set, 0, Some(0.25)).unwrap();
    let held = order
        .held_out()
        .collect::<Result<Vec<_>, _>>()
        .unwrap()
        .concat();
    assert_eq!(held.len() as u64, order.num_held_out());
    let documents = |rows: &[StoredRow]| -> std::collections::BTreeSet<(String, u64)> {
        let document = |r: &StoredRow| (r.scored.source.to_string(), r.scored.doc_index);
        rows.iter().map(document).collect()
    };
    let held_documents = documents(&held);
    for seed in [0, 1] {
        let order = Order::new(&set, seed, Some(0.25)).unwrap();
        let trained: Vec<StoredRow> = epoch(&order, 0, 64)
            .into_iter()
            .flat_map(|step| step.rows)
            .collect();
        assert_eq!(trained.len() + held.len(), 1200);
        assert!(documents(&trained).is_disjoint(&held_documents));
        assert_eq!(
            order.num_tokens(),
            trained
                .iter()
                .map(|row| row.num_tokens() as u64)
                .sum::<u64>()
        );
    }
    let share = held_documents.len() as f64
        / documents(&epoch(&Order::new(&set, 0, None).unwrap(), 0, 1_000_000)[0].rows).len() as f64;
    assert!((0.15..0.35).contains(&share), "{share}");
}

proptest! {
    #[test]
    fn micro_batches_cover_the_step_in_order_fit_and_split_no_unit(
        lengths in proptest::collection::vec(1_usize..50, 0..40),
        limit in 1_usize..100,
        unit in 1_usize..60,
    ) {
        let runs = micro_batches(&lengths, limit, unit, |len| *len);
        prop_assert_eq!(runs.concat(), lengths.as_slice());
        for run in &runs {
            prop_assert!(run.len() == 1 || run.iter().sum::<usize>() <= limit);
        }
        let units = |rows: &[usize]| -> Vec<Vec<usize>> {
            runs_of(rows, unit.min(limit), &|len| *len).into_iter().map(<[_]>::to_vec).collect()
        };
        prop_assert_eq!(runs.iter().flat_map(|run| units(run)).collect::<Vec<_>>(), units(&lengths));
    }
}
