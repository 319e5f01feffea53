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

/// The class that transformers has registered for a `model_type` of decoders.
const REGISTERED: [(Class, &[&str]); 7] = [
    (
        Class::Gemma,
        &[
            "gemma",
            "gemma2",
            "gemma3",
            "gemma3_text",
            "gemma3n",
            "gemma3n_text",
            "recurrent_gemma",
            "t5gemma",
            "zaya",
        ],
    ),
    (
        Class::Qwen2,
        &[
            "moss_transcribe_diarize",
            "qwen2",
            "qwen2_5_omni",
            "qwen2_5_vl",
            "qwen2_audio",
            "qwen2_moe",
            "qwen2_vl",
            "qwen3",
            "qwen3_moe",
            "qwen3_next",
            "qwen3_omni_moe",
            "qwen3_vl",
            "qwen3_vl_moe",
        ],
    ),
    (
        Class::Qwen35,
        &[
            "qwen3_5",
            "qwen3_5_moe",
            "qwen3_5_moe_text",
            "qwen3_5_text",
            "qwen4_exp",
        ],
    ),
    (
        Class::Gpt2,
        &[
            "codegen",
            "dbrx",
            "emu3",
            "gpt2",
            "gpt_neo",
            "gptj",
            "jais2",
            "opt",
            "phi",
            "starcoder2",
        ],
    ),
    (
        Class::GptNeoX,
        &[
            "falcon_mamba",
            "gpt_neox",
            "mamba",
            "mamba2",
            "mpt",
            "olmo",
            "olmoe",
            "rwkv",
            "xlstm",
        ],
    ),
    (
        Class::Backend,
        &[
            "ernie4_5",
            "ernie4_5_moe",
            "flex_olmo",
            "fuyu",
            "glm",
            "glm4",
            "glm4_moe",
            "glm4_moe_lite",
            "gpt_bigcode",
            "granite",
            "granitemoe",
            "granitemoehybrid",
            "granitemoeshared",
            "hyperclovax",
            "internlm3",
            "iquestcoder",
            "jamba",
            "kimi_linear",
            "mimo_v2_flash",
            "minicpm3",
            "minimax_m2",
            "modernbert-decoder",
            "nemotron",
            "olmo2",
            "olmo3",
            "olmo_hybrid",
            "persimmon",
            "phi3",
            "phimoe",
            "stablelm",
        ],
    ),
    // transformers reads tokenizer.json for these, unless mistral-common is installed and there is a tekken.json.
    (MISTRAL, &MISTRAL_TYPES),
];

const MISTRAL: Class = Class::Other("MistralCommonBackend");
const MISTRAL_TYPES: [&str; 6] = [
    "ministral",
    "ministral3",
    "mistral",
    "mistral3",
    "mixtral",
    "pixtral",
];

/// Types of decoders that transformers has no class for.
const WITHOUT_CLASS: [&str; 41] = [
    "afmoe",
    "apertus",
    "arcee",
    "bamba",
    "bitnet",
    "bloom",
    "deepseek_v2",
    "deepseek_v3",
    "deepseek_v32",
    "diffllama",
    "doge",
    "dots1",
    "exaone4",
    "falcon",
    "falcon_h1",
    "gemma4",
    "gemma4_text",
    "glm_moe_dsa",
    "gpt_oss",
    "helium",
    "hunyuan_v1_dense",
    "hunyuan_v1_moe",
    "jetmoe",
    "lfm2",
    "lfm2_moe",
    "llama",
    "llama4",
    "llama4_text",
    "longcat_flash",
    "minimax",
    "mllama",
    "nanochat",
    "nemotron_h",
    "phi4_multimodal",
    "seed_oss",
    "smollm3",
    "solar_open",
    "vaultgemma",
    "youtu",
    "zamba",
    "zamba2",
];

/// Types of models for which transformers does not believe the class that a checkpoint names.
const NAME_NOT_BELIEVED: [&str; 41] = [
    "arctic",
    "chatlm",
    "ernie4_5",
    "ernie4_5_moe",
    "fuyu",
    "h2ovl_chat",
    "hyperclovax",
    "hyperclovax_vlm",
    "hyperclovax_vision_v2",
    "internlm2",
    "internlm3",
    "iquestcoder",
    "jamba",
    "llava",
    "llava_next",
    "minicpm3",
    "minicpmv",
    "minimax_m2",
    "modernbert",
    "modernbert-decoder",
    "molmo",
    "molmo2",
    "nemotron",
    "nvfp4",
    "opencua",
    "openvla",
    "paddleocr_vl",
    "phi3",
    "phi3_v",
    "phimoe",
    "qwen2",
    "qwen3_5",
    "qwen3_5_moe",
    "qwen3_5_moe_text",
    "qwen4_exp",
    "step3_vl",
    "vipllava",
    "cohere_asr",
    "camembertv2-base",
    "siglip2",
    "smolvlm",
];

/// Names of folders that transformers reads tokenizer.json for, whatever class they name.
const NAMES_OF_BACKEND: [&str; 3] = [
    "deepseek-ai/deepseek-r1-distill-llama-",
    "deepseek-ai/deepseek-coder-",
    "stepfun-ai/step-3.7-",
];

/// Classes of transformers that are not implemented here.
const OTHERS: [&str; 100] = [
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

/// Returns the class that is registered for a type of models.
fn registered(model_type: &str) -> Option<Class> {
    REGISTERED
        .iter()
        .find(|(_, types)| types.contains(&model_type))
        .map(|(class, _)| *class)
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
    let registered = registered(&model_type);
    let is_believed = !NAME_NOT_BELIEVED.contains(&model_type.as_str());
    let base_name = |name: &str| name.strip_suffix("Fast").unwrap_or(name).to_owned();
    let declares_backend = named
        .as_ref()
        .or(of_config.as_ref())
        .is_some_and(|name| by_name(name) == Some(Class::Backend));
    let is_known = registered.is_some() || WITHOUT_CLASS.contains(&model_type.as_str());
    if !(model_type.is_empty() || is_known || declares_backend && is_believed) {
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
