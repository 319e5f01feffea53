//! The stages of scoring side by side: a thread reads, encodes and packs; the calling thread runs the
//! models; a thread writes. Bounded queues lie between them, so that none waits for another longer than
//! the slowest one takes, and memory does not grow with the corpus.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};

use super::{BadInput, Progress, StopFlag};
use crate::corpus::{Corpus, Documents, Part, Scans};
use crate::escape::Show as _;
use crate::fs::{self, AtomicFile};
use crate::pack::{PackStats, Packer, Packing};
use crate::shard::read::ShardFile;
use crate::shard::write::{ShardOptions, ShardWriter};
use crate::shard::{self, layout::shard_name};
use crate::tokenize::TextTokenizer;
use crate::types::{Document, OnBadRecord, Reject, Row, ScoredRow, TokenId};

/// Text that is encoded at a time.
const ENCODE_BYTES: usize = 1 << 20;
/// Documents that are encoded at a time, however short they are.
const ENCODE_DOCUMENTS: usize = 16_384;
/// Pieces that may wait between two stages.
const QUEUE_LEN: usize = 4;
/// Most records of a part that may be left out: a list of them has to fit into memory.
pub const MAX_REJECTS_PER_PART: usize = 100_000;

/// Scores rows.
pub trait RowScorer {
    /// Most tokens of a batch; a longer row is a batch of its own.
    fn batch_tokens(&self) -> usize;

    /// Scores a batch; the rows come back in their order.
    ///
    /// # Errors
    ///
    /// When computing fails.
    fn score(&self, rows: Vec<Row>) -> Result<Vec<ScoredRow>>;
}

/// Turns parts into rows.
#[derive(Debug, Clone, Copy)]
pub struct RowSource<'a> {
    /// The corpus.
    pub corpus: &'a Corpus,
    /// The tokenizer, with its policy on BOS and EOS.
    pub tokenizer: &'a TextTokenizer,
    /// How documents become rows.
    pub packing: Packing,
    /// Longest row, tokens.
    pub seq_len: u32,
    /// Documents of fewer tokens are left out.
    pub min_tokens: usize,
    /// Reaction to records that can't be read.
    pub on_bad_record: OnBadRecord,
}

/// Writes shards.
#[derive(Debug, Clone, Copy)]
pub struct ShardSink<'a> {
    /// The set's folder.
    pub dir: &'a Path,
    /// Options of every shard, the number of its part aside.
    pub options: ShardOptions,
}

/// Hands out the parts of a run.
pub trait PartQueue: Sync {
    /// Returns what another process found when it read the files of the corpus, for models of `num_ids` ids and a
    /// separator of token files where none is given. This one reads them all where nothing is returned.
    ///
    /// # Errors
    ///
    /// When whoever hands out parts can't be asked.
    fn scans(&self, _num_ids: u64, _separator: Option<TokenId>) -> Result<Scans> {
        Ok(Scans::default())
    }

    /// Takes the parts that there are to do, with their bytes.
    ///
    /// # Errors
    ///
    /// When whoever hands them out can't be told.
    fn begin(&self, parts: Vec<(u32, u64)>) -> Result<()>;

    /// Returns the next part to do; `None` when nothing is left. May wait until that is known.
    ///
    /// # Errors
    ///
    /// When whoever hands them out can't be asked.
    fn next(&self) -> Result<Option<u32>>;

    /// Takes notice that a part's shard is there.
    ///
    /// # Errors
    ///
    /// When whoever hands them out can't be told.
    fn published(&self, part: u32) -> Result<()>;

    /// Ends all waiting in [`PartQueue::next`]: no more parts will be done.
    fn close(&self);

    /// Returns whether this run completes the set when nothing is missing, and not another.
    fn completes(&self) -> bool;
}

/// All parts of a run, one after the other.
#[derive(Debug, Default)]
pub struct InOrder(Mutex<VecDeque<u32>>);

impl InOrder {
    fn left(&self) -> MutexGuard<'_, VecDeque<u32>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PartQueue for InOrder {
    fn begin(&self, parts: Vec<(u32, u64)>) -> Result<()> {
        self.left().extend(parts.into_iter().map(|(part, _)| part));
        Ok(())
    }

    fn next(&self) -> Result<Option<u32>> {
        Ok(self.left().pop_front())
    }

    fn published(&self, _part: u32) -> Result<()> {
        Ok(())
    }

    fn close(&self) {
        self.left().clear();
    }

    fn completes(&self) -> bool {
        true
    }
}

/// A piece of a part, which goes from stage to stage.
enum Piece<'p, R> {
    /// A part begins.
    Begin(&'p Part),
    /// Rows of the current part, and how many bytes of text they were made from.
    Rows(Vec<R>, u64),
    /// The current part is complete.
    End(PackStats, Vec<Reject>),
}

/// The stage after has ended, and its error says why.
struct HungUp;

/// Computes and publishes the shards of these parts; returns the number of tokens.
///
/// # Errors
///
/// When a stage fails. Parts that are published by then stay.
pub fn run(
    source: &RowSource<'_>,
    parts: &[&Part],
    scorer: &dyn RowScorer,
    sink: &ShardSink<'_>,
    stop: &StopFlag,
    progress: &dyn Progress,
) -> Result<u64> {
    let queue = InOrder::default();
    queue.begin(
        parts
            .iter()
            .map(|part| (part.index, part.size_bytes))
            .collect(),
    )?;
    let bytes = parts.iter().map(|part| part.size_bytes).sum();
    run_from(source, bytes, &queue, scorer, sink, stop, progress)
}

/// Computes and publishes the shards of the parts of a queue, `total_bytes` in all; returns the number of tokens.
///
/// # Errors
///
/// When a stage fails. Parts that are published by then stay.
pub(super) fn run_from(
    source: &RowSource<'_>,
    total_bytes: u64,
    queue: &dyn PartQueue,
    scorer: &dyn RowScorer,
    sink: &ShardSink<'_>,
    stop: &StopFlag,
    progress: &dyn Progress,
) -> Result<u64> {
    progress.begin("scoring", total_bytes);
    let outcome = std::thread::scope(|scope| -> Result<u64> {
        let (send_rows, rows) = sync_channel(QUEUE_LEN);
        let (send_scored, scored) = sync_channel(QUEUE_LEN);
        let reader = scope.spawn(move || source.read(queue, &send_rows));
        let writer = scope.spawn(move || sink.write(queue, &scored));
        let tokens = score(&rows, scorer, &send_scored, stop, progress);
        queue.close();
        // With its queues gone, a stage that still waits is woken and ends.
        drop((rows, send_scored));
        let panicked = |what| move |_| anyhow::anyhow!("the {what} thread panicked");
        let written = writer.join().map_err(panicked("writer"))?;
        let read = reader.join().map_err(panicked("reader"))?;
        // A stage that failed is the reason that the one after it ran dry, or that the one before it could not
        // send.
        let tokens = tokens?;
        read?;
        written?;
        tokens.map_err(|HungUp| anyhow::anyhow!("a stage ended early without an error"))
    });
    progress.finish();
    outcome
}

impl<'a> RowSource<'a> {
    /// Returns the rows of the first documents of a part, up to about `max_bytes` of text, and the number of
    /// documents and bytes they are from.
    ///
    /// # Errors
    ///
    /// When reading fails, or a record is bad and that is not to be skipped.
    pub fn sample<'c>(
        &self,
        reader: &mut Documents<'c>,
        part: &'c Part,
        max_bytes: u64,
    ) -> Result<(Vec<Row>, u64, u64)> {
        let mut documents = Vec::new();
        let mut num_records = 0;
        reader.begin(part);
        let before = reader.bytes_read();
        let bytes = loop {
            match reader.next() {
                Some(Ok(document)) => documents.push(document),
                Some(Err(error)) => {
                    self.reject(error.reject(""), error.into())?;
                }
                None => break part.size_bytes,
            }
            num_records += 1;
            let bytes = reader.bytes_read() - before;
            if bytes >= max_bytes {
                // Of a table, a part counts the column as it is encoded.
                break match part.num_rows() {
                    Some(rows) => {
                        (part.size_bytes as f64 * num_records as f64 / rows as f64) as u64
                    }
                    None => bytes.min(part.size_bytes),
                };
            }
        };
        let num_documents = documents.len() as u64;
        let mut packer = self.packer()?;
        let (mut rows, _) = self.encode(documents, &mut packer)?;
        rows.extend(packer.finish().0);
        Ok((rows, num_documents, bytes))
    }

    fn packer(&self) -> Result<Packer> {
        Ok(Packer::new(self.packing, self.seq_len)?.with_min_tokens(self.min_tokens))
    }

    /// Returns a bad record's entry in the list, or its error if such records are not to be skipped.
    fn reject(&self, reject: Option<Reject>, error: anyhow::Error) -> Result<Reject> {
        match (self.on_bad_record, reject) {
            (OnBadRecord::Skip, Some(reject)) => Ok(reject),
            _ => Err(error),
        }
    }

    fn encode(
        &self,
        documents: Vec<Document>,
        packer: &mut Packer,
    ) -> Result<(Vec<Row>, Vec<Reject>)> {
        let mut rows = Vec::new();
        let mut rejects = Vec::new();
        for encoded in self.tokenizer.encode_batch(documents) {
            match encoded {
                Ok(document) => rows.extend(packer.push(document)),
                Err(error) => rejects.push(self.reject(error.reject(), error.into())?),
            }
        }
        Ok((rows, rejects))
    }

    /// Runs the first stage: reads, encodes and packs.
    fn read(&self, queue: &dyn PartQueue, send: &SyncSender<Piece<'a, Row>>) -> Result<()> {
        let mut documents = self.corpus.reader();
        while let Some(index) = queue.next()? {
            let parts = self.corpus.parts();
            let part = parts.iter().find(|part| part.index == index);
            let part = part.with_context(|| format!("the corpus has no part {index}"))?;
            if send.send(Piece::Begin(part)).is_err() {
                return Ok(());
            }
            documents.begin(part);
            let mut packer = self.packer()?;
            let mut waiting: Vec<Document> = Vec::new();
            let mut bytes = 0;
            let mut bytes_sent = documents.bytes_read();
            let mut rejects: Vec<Reject> = Vec::new();
            loop {
                let document = documents.next();
                let is_last = document.is_none();
                match document {
                    Some(Ok(document)) => {
                        bytes += document.content.size_bytes();
                        waiting.push(document);
                    }
                    Some(Err(error)) => {
                        let reject = error.reject(documents.source());
                        rejects.push(self.reject(reject, error.into())?);
                    }
                    None => {}
                }
                if bytes >= ENCODE_BYTES || waiting.len() >= ENCODE_DOCUMENTS || is_last {
                    let (rows, bad) = self.encode(std::mem::take(&mut waiting), &mut packer)?;
                    rejects.extend(bad);
                    let done = documents.bytes_read() - bytes_sent;
                    if send.send(Piece::Rows(rows, done)).is_err() {
                        return Ok(());
                    }
                    bytes_sent += done;
                    bytes = 0;
                }
                if rejects.len() > MAX_REJECTS_PER_PART {
                    return Err(too_many(part, &rejects).into());
                }
                if is_last {
                    break;
                }
            }
            let (tail, mut stats) = packer.finish();
            rejects.sort_by(|a, b| (&a.source, a.doc_index).cmp(&(&b.source, b.doc_index)));
            stats.rejected_records = rejects.len() as u64;
            let last = [
                Piece::Rows(tail.into_iter().collect(), 0),
                Piece::End(stats, rejects),
            ];
            for piece in last {
                if send.send(piece).is_err() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}

fn too_many(part: &Part, rejects: &[Reject]) -> BadInput {
    let first = rejects.first().map_or_else(String::new, |first| {
        format!(
            "; the first is record {} of {}: {}",
            first.doc_index,
            first.source.shown(),
            first.reason.shown()
        )
    });
    BadInput(format!(
        "more than {MAX_REJECTS_PER_PART} records of part {} can't be read{first}",
        part.index
    ))
}

/// Runs the stage in the middle: scores. Returns the number of tokens that went through.
fn score<'p>(
    rows: &Receiver<Piece<'p, Row>>,
    scorer: &dyn RowScorer,
    send: &SyncSender<Piece<'p, ScoredRow>>,
    stop: &StopFlag,
    progress: &dyn Progress,
) -> Result<Result<u64, HungUp>> {
    let mut tokens = 0;
    let mut done_bytes = 0;
    // The stage before hangs up when nothing is left, or with an error of its own.
    while let Ok(piece) = rows.recv() {
        let Piece::Begin(part) = piece else {
            return Ok(Err(HungUp));
        };
        if send.send(Piece::Begin(part)).is_err() {
            return Ok(Err(HungUp));
        }
        let mut batch: Vec<Row> = Vec::new();
        let mut batch_tokens = 0;
        let mut part_bytes = 0;
        let mut flush = |batch: &mut Vec<Row>, len: &mut usize, done: u64| -> Result<bool> {
            stop.check("finished parts are kept, and it does the rest")?;
            let scored = scorer.score(std::mem::take(batch))?;
            tokens += *len as u64;
            progress.advance(done, *len as u64, "");
            *len = 0;
            Ok(send.send(Piece::Rows(scored, 0)).is_ok())
        };
        let (stats, rejects) = loop {
            let Ok(piece) = rows.recv() else {
                return Ok(Err(HungUp));
            };
            let (rows, bytes) = match piece {
                Piece::Rows(rows, bytes) => (rows, bytes),
                Piece::End(stats, rejects) => break (stats, rejects),
                Piece::Begin(_) => return Ok(Err(HungUp)),
            };
            part_bytes += bytes;
            let done = done_bytes + part_bytes.min(part.size_bytes);
            for row in rows {
                let len = row.input_ids.len();
                if batch_tokens > 0
                    && batch_tokens + len > scorer.batch_tokens()
                    && !flush(&mut batch, &mut batch_tokens, done)?
                {
                    return Ok(Err(HungUp));
                }
                batch_tokens += len;
                batch.push(row);
            }
        };
        done_bytes += part.size_bytes;
        let flushed = batch.is_empty() || flush(&mut batch, &mut batch_tokens, done_bytes)?;
        if !flushed || send.send(Piece::End(stats, rejects)).is_err() {
            return Ok(Err(HungUp));
        }
        progress.advance(done_bytes, 0, "");
    }
    Ok(Ok(tokens))
}

impl ShardSink<'_> {
    /// Runs the last stage: writes and publishes.
    fn write(&self, queue: &dyn PartQueue, scored: &Receiver<Piece<'_, ScoredRow>>) -> Result<()> {
        // As in the stage before.
        while let Ok(Piece::Begin(part)) = scored.recv() {
            let path = self.dir.join(shard_name(part.index, self.options.format));
            let options = ShardOptions {
                part: part.index,
                ..self.options
            };
            let file = AtomicFile::create(&path)?;
            let failure = file.failure();
            let failed = |error: shard::Error| fs::write_failure(&path, &failure, error.into());
            let mut writer = ShardWriter::new(file, options).map_err(failed)?;
            let stats = loop {
                // The stage before hung up, for a reason of its own.
                let Ok(piece) = scored.recv() else {
                    return Ok(());
                };
                match piece {
                    Piece::Rows(rows, _) => {
                        for row in &rows {
                            writer.push(row).map_err(failed)?;
                        }
                    }
                    Piece::Begin(_) => return Ok(()),
                    Piece::End(stats, rejects) => {
                        rejects.into_iter().for_each(|reject| writer.reject(reject));
                        break stats;
                    }
                }
            };
            let (file, _) = writer.finish(&stats).map_err(failed)?;
            if !file.publish_new()? {
                // Another run of this worker was faster. It made the same bytes, unless the plan was replaced
                // while it ran, which is better known now than at the end.
                ShardFile::open(&path, options.format, options.part, options.columns)?
                    .expect_plan(options.plan)?;
            }
            queue.published(part.index)?;
        }
        Ok(())
    }
}
