//! Which class of transformers a folder's tokenizer is, as `AutoTokenizer` of its version 5 chooses it. Some
//! classes load tokenizer.json as it is; others take its vocabulary and merges, and make the rest themselves.

use super::ordered::Ordered;

/// A class of tokenizers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// `TokenizersBackend`, alias `PreTrainedTokenizerFast`: tokenizer.json as it is.
    Backend,
    Llama,
    Gemma,
    Qwen2,
    Qwen35,
    Gpt2,
    GptNeoX,
    /// A class that is not implemented here.
    Other(&'static str),
}

impl Class {
    /// Returns the name of the class in transformers.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Backend => "PreTrainedTokenizerFast",
            Self::Llama => "LlamaTokenizer",
            Self::Gemma => "GemmaTokenizer",
            Self::Qwen2 => "Qwen2Tokenizer",
            Self::Qwen35 => "Qwen3_5Tokenizer",
            Self::Gpt2 => "GPT2Tokenizer",
            Self::GptNeoX => "GPTNeoXTokenizer",
            Self::Other(name) => name,
        }
    }
}

/// The class that transformers has registered for each type of models, as scripts/model_types.py writes it.
const MODEL_TYPES: &str = include_str!("model_types.txt");

/// The class registered for Mistral's types. transformers reads tokenizer.json for these, unless mistral-common is
/// installed and there is a tekken.json.
const MISTRAL: Class = Class::Other("MistralCommonBackend");

/// Names of folders that transformers reads tokenizer.json for, whatever class they name.
const NAMES_OF_BACKEND: [&str; 3] = [
    "deepseek-ai/deepseek-r1-distill-llama-",
    "deepseek-ai/deepseek-coder-",
    "stepfun-ai/step-3.7-",
];

/// Classes of transformers that are not implemented here.
const OTHERS: [&str; 103] = [
    "LEDTokenizer",
    "LxmertTokenizer",
    "MvpTokenizer",
    "AlbertTokenizer",
    "BartTokenizer",
    "BarthezTokenizer",
    "BartphoTokenizer",
    "BertGenerationTokenizer",
    "BertJapaneseTokenizer",
    "BertTokenizer",
    "BertweetTokenizer",
    "BigBirdTokenizer",
    "BioGptTokenizer",
    "BlenderbotSmallTokenizer",
    "BlenderbotTokenizer",
    "ByT5Tokenizer",
    "CLIPTokenizer",
    "CTRLTokenizer",
    "CamembertTokenizer",
    "CanineTokenizer",
    "ClvpTokenizer",
    "CodeGenTokenizer",
    "CodeLlamaTokenizer",
    "CohereTokenizer",
    "ConvBertTokenizer",
    "CpmAntTokenizer",
    "CpmTokenizer",
    "DPRContextEncoderTokenizer",
    "DPRQuestionEncoderTokenizer",
    "DPRReaderTokenizer",
    "DebertaTokenizer",
    "DebertaV2Tokenizer",
    "DiaTokenizer",
    "DistilBertTokenizer",
    "EsmTokenizer",
    "EsmcTokenizer",
    "FNetTokenizer",
    "FSMTTokenizer",
    "FastSpeech2ConformerTokenizer",
    "FlaubertTokenizer",
    "FunnelTokenizer",
    "GPTNeoXJapaneseTokenizer",
    "GPTSw3Tokenizer",
    "HerbertTokenizer",
    "LasrTokenizer",
    "LayoutLMv2Tokenizer",
    "LayoutLMv3Tokenizer",
    "LayoutXLMTokenizer",
    "LukeTokenizer",
    "M2M100Tokenizer",
    "MBart50Tokenizer",
    "MBartTokenizer",
    "MLukeTokenizer",
    "MPNetTokenizer",
    "MarianTokenizer",
    "MarkupLMTokenizer",
    "MgpstrTokenizer",
    "MistralCommonBackend",
    "MobileBertTokenizer",
    "MyT5Tokenizer",
    "NllbTokenizer",
    "NougatTokenizer",
    "OpenAIGPTTokenizer",
    "PLBartTokenizer",
    "ParakeetTokenizer",
    "PegasusTokenizer",
    "PerceiverTokenizer",
    "PhobertTokenizer",
    "Pop2PianoTokenizer",
    "ProphetNetTokenizer",
    "RagTokenizer",
    "ReformerTokenizer",
    "RemBertTokenizer",
    "RoCBertTokenizer",
    "RoFormerTokenizer",
    "RobertaTokenizer",
    "SeamlessM4TTokenizer",
    "SentencePieceBackend",
    "Siglip2Tokenizer",
    "SiglipTokenizer",
    "Speech2TextTokenizer",
    "SpeechT5Tokenizer",
    "SplinterTokenizer",
    "SqueezeBertTokenizer",
    "T5Tokenizer",
    "TapasTokenizer",
    "Tipsv2Tokenizer",
    "UdopTokenizer",
    "VideoPrismTokenizer",
    "VitsTokenizer",
    "Wav2Vec2CTCTokenizer",
    "Wav2Vec2PhonemeCTCTokenizer",
    "WhisperTokenizer",
    "XGLMTokenizer",
    "XLMProphetNetTokenizer",
    "XLMRobertaTokenizer",
    "XLMTokenizer",
    "XLNetTokenizer",
    "BasicTokenizer",
    "CharacterTokenizer",
    "MecabTokenizer",
    "WordpieceTokenizer",
    "AutoTokenizer",
];

/// A type of models that transformers knows.
struct ModelType {
    /// The class that is registered for it.
    registered: Option<Class>,
    /// Another class counts where the files of a checkpoint name one.
    is_believed: bool,
}

fn model_type(name: &str) -> Option<ModelType> {
    let mut types = MODEL_TYPES.lines().map(|line| line.split(' '));
    let mut fields = types.find(|fields| fields.clone().next() == Some(name))?;
    Some(ModelType {
        registered: fields.nth(1).and_then(by_name),
        is_believed: fields.next().is_none(),
    })
}

/// Returns the class of this name; `None` when transformers has none.
fn by_name(name: &str) -> Option<Class> {
    let name = name.strip_suffix("Fast").unwrap_or(name);
    // "PreTrainedTokenizer" is what is left of "PreTrainedTokenizerFast".
    if [
        "TokenizersBackend",
        "PreTrainedTokenizer",
        "PythonBackend",
        "BloomTokenizer",
    ]
    .contains(&name)
    {
        return Some(Class::Backend);
    }
    let implemented = [
        Class::Llama,
        Class::Gemma,
        Class::Qwen2,
        Class::Qwen35,
        Class::Gpt2,
        Class::GptNeoX,
    ];
    let mut classes = implemented
        .into_iter()
        .chain(OTHERS.into_iter().map(Class::Other));
    classes.find(|class| class.name() == name)
}

/// Returns the class of a folder, and the code of its own that transformers would not run either unless told to.
///
/// # Errors
///
/// When transformers refuses the folder.
pub(super) fn pick(
    folder: &str,
    config: &Ordered,
    tokenizer_config: &Ordered,
    is_byte_level: bool,
) -> Result<(Class, Option<String>), String> {
    let text = |file: &Ordered, key: &str| file.get(key)?.as_str().map(str::to_owned);
    let model_type = text(config, "model_type").unwrap_or_default();
    let named = text(tokenizer_config, "tokenizer_class");
    let of_config = text(config, "tokenizer_class");
    let code = tokenizer_config.get("auto_map").and_then(|map| {
        let list = map.get("AutoTokenizer").unwrap_or(map);
        let mut names = list.items().iter().filter_map(Ordered::as_str);
        names.next_back().or(list.as_str()).map(str::to_owned)
    });
    let known = self::model_type(&model_type);
    let registered = known.as_ref().and_then(|known| known.registered);
    let is_believed = known.as_ref().is_none_or(|known| known.is_believed);
    let base_name = |name: &str| name.strip_suffix("Fast").unwrap_or(name).to_owned();
    let declares_backend = named
        .as_ref()
        .or(of_config.as_ref())
        .is_some_and(|name| by_name(name) == Some(Class::Backend));
    if !(model_type.is_empty() || known.is_some() || declares_backend && is_believed) {
        return Err(format!(
            "it is not known which class transformers takes for the model_type {model_type} of config.json\nhint: if \
             tokenizer.json alone is to decide, put \"tokenizer_class\": \"PreTrainedTokenizerFast\" into \
             tokenizer_config.json"
        ));
    }

    if code.is_none() {
        let folder = folder.to_lowercase();
        if NAMES_OF_BACKEND.iter().any(|name| folder.starts_with(name)) {
            return Ok((Class::Backend, None));
        }
        if let Some(declared) = named.as_ref().or(of_config.as_ref()) {
            let declared = base_name(declared);
            if declared == "LlamaTokenizer"
                && registered != Some(MISTRAL)
                && is_believed
                && is_byte_level
            {
                return Ok((Class::Backend, None));
            }
            if let Some(registered) = registered
                && !is_same(registered, &declared)
            {
                if registered == Class::Backend || registered == MISTRAL {
                    return Ok((Class::Backend, None));
                }
                let class = match is_believed {
                    true => by_name(&declared),
                    false => Some(registered),
                };
                return Ok((class.unwrap_or(Class::Backend), None));
            }
        }
    }
    let class = match (&named, &of_config) {
        (Some(name), _) => by_name(name),
        (None, Some(name)) => Some(by_name(name).ok_or_else(|| {
            format!("config.json names the class {name}, which transformers does not have")
        })?),
        (None, None) => registered.map(|class| match class {
            MISTRAL => Class::Backend,
            class => class,
        }),
    };
    if let Some(code) = &code
        && is_believed
        && class.is_none()
        && registered.is_none()
    {
        return Err(format!(
            "tokenizer_config.json names code of its own ({code}), which remit can't run"
        ));
    }
    Ok((
        class.unwrap_or(Class::Backend),
        code.filter(|_| is_believed),
    ))
}

/// Returns whether a class has this name, as transformers compares them.
fn is_same(class: Class, name: &str) -> bool {
    match class {
        Class::Backend => name == "TokenizersBackend",
        class => class.name() == name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_class_of_the_table_is_known() {
        for line in MODEL_TYPES.lines() {
            let fields: Vec<&str> = line.split(' ').collect();
            let (name, class) = (fields[0], fields[1]);
            let found = model_type(name).unwrap();
            assert_eq!(found.registered.is_some(), class != "-", "{line}");
            assert_eq!(
                found.is_believed,
                fields.get(2) != Some(&"overruled"),
                "{line}"
            );
        }
        assert!(model_type("no_such_type").is_none());
    }
}
