//! The models that score: what their files say, and their log-probs of rows.

use anyhow::Result;

use super::super::special::{TokenizerSource, check_meaning};
use super::super::stages::RowSource;
use super::super::{BadInput, Progress, Usage};
use super::batches::{BatchMemory, Batches};
use super::options::{
    AddToken, ComputeOptions, DEFAULT_BATCH_TOKENS, DEFAULT_SEQ_LEN, DEFAULT_STREAMED_BATCH_TOKENS,
    RowOptions, SetOptions,
};
use super::scorer::{Scorer, Weights};
use crate::corpus::Corpus;
use crate::model::{Architecture, Compute, Decoder, OpenModel, StreamedDecoder};
use crate::pack::Packer;
use crate::tokenize::{DocumentTokens, NamedToken, SpecialTokensInText, TextTokenizer};
use crate::types::{OnBadRecord, TokenId};
use crate::weight::WeightFormula;

/// Tokens that end documents in pre-training. Any other that an RL model names may be the end of its turns.
const ENDS_OF_DOCUMENTS: [&str; 8] = [
    "</s>",
    "<eos>",
    "<EOS>",
    "[EOS]",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|end_of_document|>",
    "<｜end▁of▁sentence｜>",
];

/// The models, open but not loaded, and what is known of them.
pub(in super::super) struct Models {
    /// The RL-tuned model.
    pub rl: OpenModel,
    /// The frozen base, if there is one.
    pub base: Option<OpenModel>,
    /// The tokenizer that decides the ids, with the special tokens of documents.
    pub tokenizer: TextTokenizer,
    /// The folder it is from, as given, or the name of a built-in model.
    pub tokenizer_source: String,
    /// BOS and EOS of documents, with where they are from.
    pub document_tokens: DocumentTokens,
    /// Reading of text that spells out a special token.
    pub special_tokens_in_text: SpecialTokensInText,
    /// Number of ids that both have embeddings for.
    pub vocab_size: usize,
    /// The id that ends a document in pre-training, if they name one.
    pub eos: Option<TokenId>,
    /// Longest row, tokens.
    pub seq_len: u32,
}

impl Models {
    /// Opens the models, and checks everything that needs no weights, so that mistakes show at once.
    pub fn examine(
        rows: &RowOptions,
        options: &ComputeOptions,
        progress: &dyn Progress,
    ) -> Result<Self> {
        let open = |source| OpenModel::open_ignoring(source, &options.ignored_fields);
        let rl = open(&options.rl)?;
        let base = options.base.as_ref().map(open).transpose()?;
        refuse_absent(&options.ignored_fields, [Some(&rl), base.as_ref()])?;
        let models = || std::iter::once(&rl).chain(&base);
        let least = |of: fn(&Architecture) -> usize| {
            models().fold(usize::MAX, |least, model| {
                least.min(of(model.architecture()))
            })
        };
        let vocab_size = least(|architecture| architecture.vocab_size);
        let longest = least(|architecture| architecture.max_position_embeddings);

        // An RL-tuned chat model often ends its turns with another token than the one that ends documents in
        // pre-training, so the base decides.
        let decider = base.as_ref().unwrap_or(&rl);
        let deciding = match &options.tokenizer {
            Some(folder) => TokenizerSource::in_folder(folder)?,
            None => TokenizerSource::of(decider)?,
        };
        for model in models() {
            let decides = options.tokenizer.is_none() && std::ptr::eq(model, decider);
            if !decides {
                check_meaning(&deciding.tokenizer, model, vocab_size, progress)?;
            }
        }
        for warning in deciding.tokenizer.warnings() {
            progress.warn(warning);
        }
        let longest = u32::try_from(longest).unwrap_or(u32::MAX);
        let seq_len = match rows.seq_len {
            Some(seq_len) if seq_len > longest => {
                return Err(Usage(format!(
                    "--seq-len {seq_len} exceeds the {longest} positions that the models were made for"
                ))
                .into());
            }
            Some(seq_len) => seq_len,
            None => DEFAULT_SEQ_LEN.min(longest),
        };
        Packer::new(rows.packing, seq_len).map_err(|error| Usage(format!("--seq-len: {error}")))?;
        let document_tokens = deciding.document_tokens(rows.bos, rows.eos)?;
        for (name, token) in [("BOS", &document_tokens.bos), ("EOS", &document_tokens.eos)] {
            if let Some(NamedToken { id, token, from }) = token
                && usize::try_from(*id).map_or(true, |id| id >= vocab_size)
            {
                return Err(BadInput(format!(
                    "the {name} token {token:?} of {from} has the id {id}, but the model has {vocab_size} \
                     embeddings\nhint: correct tokenizer_config.json or config.json, or turn it off with --{} never",
                    name.to_lowercase()
                ))
                .into());
            }
        }
        if base.is_none()
            && options.tokenizer.is_none()
            && let (AddToken::Auto, Some(eos)) = (rows.eos, &document_tokens.eos)
            && !ENDS_OF_DOCUMENTS.contains(&eos.token.as_str())
        {
            progress.warn(&format!(
                "documents end with {eos}, as no base model is given: a chat model often ends its turns with another \
                 token than the one that ended documents in pre-training, and the learner would be trained to end \
                 documents with it\nhint: if the base ends documents with another, give --base-model, or its folder \
                 as --tokenizer; --eos never adds none"
            ));
        }
        let reading = rows
            .special_tokens_in_text
            .unwrap_or_else(|| deciding.tokenizer.default_special_tokens_in_text());
        let eos = deciding.named("eos_token").map(|token| token.id);
        Ok(Self {
            eos,
            rl,
            base,
            tokenizer_source: deciding.source.name(),
            tokenizer: deciding
                .tokenizer
                .with_special_tokens(document_tokens.ids())
                .with_special_tokens_in_text(reading)
                .with_num_rows(vocab_size),
            document_tokens,
            special_tokens_in_text: reading,
            vocab_size,
            seq_len,
        })
    }

    /// Returns the first stage, which turns a corpus into rows.
    pub fn source<'a>(
        &'a self,
        rows: &RowOptions,
        on_bad_record: OnBadRecord,
        corpus: &'a Corpus,
    ) -> RowSource<'a> {
        RowSource {
            corpus,
            tokenizer: &self.tokenizer,
            packing: rows.packing,
            seq_len: self.seq_len,
            min_tokens: rows.min_tokens,
            on_bad_record,
        }
    }

    /// Loads the weights of both models.
    ///
    /// # Errors
    ///
    /// When they can't be read, or the device has not enough memory.
    pub fn load<'a>(
        &self,
        options: &ComputeOptions,
        shards: &SetOptions,
        compute: &Compute,
        progress: &'a dyn Progress,
    ) -> Result<Scorer<'a>> {
        let models = (&self.rl, self.base.as_ref());
        let mut scorer = load_scorer(models, self.seq_len, options, compute, progress)?;
        scorer.exact = shards.exact;
        scorer.formula = shards.formula;
        scorer.distributions = shards.distributions;
        Ok(scorer)
    }
}

/// Loads the weights of an RL model and a base, to score rows of up to `longest_row` tokens.
///
/// # Errors
///
/// When they can't be read, or the device has not enough memory.
pub(super) fn load_scorer<'a>(
    (rl, base): (&OpenModel, Option<&OpenModel>),
    longest_row: u32,
    options: &ComputeOptions,
    compute: &Compute,
    progress: &'a dyn Progress,
) -> Result<Scorer<'a>> {
    let all: Vec<&OpenModel> = base.into_iter().chain([rl]).collect();
    let memory = BatchMemory::of(&all, longest_row, options, &compute.device)?;
    if let Some(memory) = &memory {
        memory.expect_room_for_weights()?;
    }
    let load = |model: &OpenModel| {
        if options.stream_weights {
            return Ok(Weights::OnDisk(StreamedDecoder::from_open(model, compute)));
        }
        progress.note(&format!("loading {model}"));
        Decoder::from_open(model, compute).map(Weights::InMemory)
    };
    let rl = load(rl)?;
    let base = base.map(load).transpose()?;
    let batch_tokens = match (options.batch_tokens, memory) {
        (given, Some(memory)) => memory.batch_tokens(given, &compute.device, progress)?,
        (given, None) => {
            let wanted = given.unwrap_or(match options.stream_weights {
                true => DEFAULT_STREAMED_BATCH_TOKENS,
                false => DEFAULT_BATCH_TOKENS,
            });
            let models = base.iter().chain([&rl]);
            models
                .map(Weights::max_batch_tokens)
                .fold(wanted, usize::min)
        }
    };
    Ok(Scorer {
        exact: false,
        formula: WeightFormula::default(),
        distributions: None,
        batches: Batches::new(batch_tokens, compute.device.to_string(), progress),
        rl,
        base,
    })
}

/// Refuses a field to ignore that no model has: it would be misspelled.
fn refuse_absent(ignored: &[String], models: [Option<&OpenModel>; 2]) -> Result<()> {
    let found: Vec<&String> = models
        .into_iter()
        .flatten()
        .flat_map(OpenModel::ignored_fields)
        .collect();
    match ignored.iter().find(|name| !found.contains(name)) {
        None => Ok(()),
        Some(name) => Err(Usage(format!(
            "--ignore-config-field {name}: no config.json has a field of this name that is not understood\nhint: leave it out"
        ))
        .into()),
    }
}
