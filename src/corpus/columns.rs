//! Columns of tables that hold documents, as text, as lists of token ids, or as messages of a chat.

use arrow_array::cast::AsArray;
use arrow_array::types::{
    ArrowPrimitiveType, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type,
    UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};
use arrow_array::{Array, ArrayRef, RecordBatch};
use arrow_schema::{DataType, Field, Schema};
use serde::{Deserialize, Serialize};

use super::RecordProblem;
use super::cells::{list, text, whole};
use super::masks::{self, Masks};
use super::nested;
use super::options::{DEFAULT_IDS_FIELD, DEFAULT_MESSAGES_FIELD, DEFAULT_TEXT_FIELD, TOOLS_FIELD};
use crate::types::Content;

/// Why no column holds the documents.
pub(super) enum NoColumn {
    /// None has the name.
    Absent {
        /// The name that was looked for.
        field: String,
    },
    /// The one that has it holds something else.
    OtherType {
        /// The name that was looked for.
        field: String,
        /// The column's type.
        found: String,
    },
}

/// What a column of documents holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Kind {
    Text,
    Ids,
    Messages,
}

/// The columns that are read of a table.
#[derive(Debug, Clone)]
pub(super) struct Choice {
    /// The name of the documents' field, as messages have it.
    pub(super) field: String,
    pub(super) kind: Kind,
    /// Names from the column of the documents down to the field in it.
    path: Vec<String>,
    /// Columns by their numbers in the file, ascending, and their names.
    columns: Vec<(usize, String)>,
}

impl Choice {
    /// Numbers of the columns, ascending.
    pub(super) fn columns(&self) -> impl Iterator<Item = usize> + '_ {
        self.columns.iter().map(|(index, _)| *index)
    }

    /// Returns whether a leaf column, by the names that lead to it, is read, and whether it is of the documents.
    pub(super) fn reads(&self, leaf: &[String]) -> (bool, bool) {
        let is_of_documents = leaf.starts_with(&self.path);
        let root = self.path.first();
        let is_beside =
            |(_, name): &(usize, String)| Some(name) != root && Some(name) == leaf.first();
        let is_read = is_of_documents || self.columns.iter().any(is_beside);
        (is_read, is_of_documents)
    }

    /// The columns of a batch that has just those that are read.
    pub(super) fn of(&self, batch: &RecordBatch) -> Option<Batch> {
        let (root, below) = self.path.split_first()?;
        let named = |wanted: &str| {
            let at = self.columns.iter().position(|(_, name)| name == wanted)?;
            batch.columns().get(at).cloned()
        };
        let mut documents = named(root)?;
        let mut parents = Vec::new();
        for name in below {
            let child = documents.as_struct_opt()?.column_by_name(name)?.clone();
            parents.push(std::mem::replace(&mut documents, child));
        }
        let beside = |name: &&'static str| named(name).map(|column| (*name, column));
        Some(Batch {
            parents,
            documents,
            masks: match self.kind {
                Kind::Ids => masks::NAMES.iter().filter_map(beside).collect(),
                Kind::Text | Kind::Messages => Vec::new(),
            },
            tools: (self.kind == Kind::Messages)
                .then(|| named(TOOLS_FIELD))
                .flatten(),
        })
    }
}

/// Chooses the column that holds the documents, the one that is named, else `text`, else `input_ids`, else `messages`;
/// and the columns that go with it. Where no column has a name with dots in it, these lead into structures.
pub(super) fn choose(schema: &Schema, field: Option<&str>) -> Result<Choice, NoColumn> {
    let defaults = [
        DEFAULT_TEXT_FIELD,
        DEFAULT_IDS_FIELD,
        DEFAULT_MESSAGES_FIELD,
    ];
    let found = match field {
        Some(field) => path_to(schema, field),
        None => defaults.iter().find_map(|name| path_to(schema, name)),
    };
    let Some((index, path, data_type)) = found else {
        return Err(NoColumn::Absent {
            field: field.unwrap_or(DEFAULT_TEXT_FIELD).to_owned(),
        });
    };
    let field = field.map_or_else(|| path.join("."), str::to_owned);
    let Some(kind) = kind_of(&data_type) else {
        return Err(NoColumn::OtherType {
            field,
            found: data_type.to_string(),
        });
    };
    let beside: &[&str] = match kind {
        Kind::Ids if path.len() == 1 => &masks::NAMES,
        Kind::Messages if path.len() == 1 => &[TOOLS_FIELD],
        _ => &[],
    };
    let mut columns: Vec<(usize, String)> = beside
        .iter()
        .filter_map(|name| Some((schema.index_of(name).ok()?, (*name).to_owned())))
        // A single label is the class of the whole document.
        .filter(|(index, name)| {
            name != masks::LABELS || element(schema.field(*index).data_type()).is_some()
        })
        .collect();
    columns.extend(path.first().map(|name| (index, name.clone())));
    columns.sort();
    columns.dedup();
    for (index, name) in &columns {
        let data_type = schema.field(*index).data_type();
        if masks::NAMES.contains(&name.as_str()) && kind == Kind::Ids && !is_mask(data_type) {
            return Err(NoColumn::OtherType {
                field: name.clone(),
                found: data_type.to_string(),
            });
        }
    }
    Ok(Choice {
        field,
        kind,
        path,
        columns,
    })
}

/// Finds a field: the column of the name, else what the parts of the name lead to.
fn path_to(schema: &Schema, name: &str) -> Option<(usize, Vec<String>, DataType)> {
    if let Ok(index) = schema.index_of(name) {
        let data_type = schema.field(index).data_type().clone();
        return Some((index, vec![name.to_owned()], data_type));
    }
    let mut parts = name.split('.').map(str::to_owned);
    let root = parts.next()?;
    let index = schema.index_of(&root).ok()?;
    let mut path = vec![root];
    let mut data_type = schema.field(index).data_type();
    for part in parts {
        let DataType::Struct(fields) = data_type else {
            return None;
        };
        data_type = fields.find(&part)?.1.data_type();
        path.push(part);
    }
    Some((index, path, data_type.clone()))
}

fn kind_of(data_type: &DataType) -> Option<Kind> {
    if is_text(data_type) {
        return Some(Kind::Text);
    }
    match element(data_type)?.data_type() {
        element if element.is_integer() => Some(Kind::Ids),
        DataType::Struct(fields)
            if fields.find("role").is_some() && nested::is_supported(data_type) =>
        {
            Some(Kind::Messages)
        }
        _ => None,
    }
}

fn is_text(data_type: &DataType) -> bool {
    match data_type {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => true,
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView => true,
        DataType::Dictionary(_, values) => is_text(values),
        _ => false,
    }
}

fn element(data_type: &DataType) -> Option<&Field> {
    match data_type {
        DataType::List(element)
        | DataType::LargeList(element)
        | DataType::FixedSizeList(element, _) => Some(element),
        _ => None,
    }
}

fn is_mask(data_type: &DataType) -> bool {
    element(data_type).is_some_and(|element| {
        let element = element.data_type();
        element.is_integer()
            || matches!(
                element,
                DataType::Boolean | DataType::Float32 | DataType::Float64
            )
    })
}

/// The columns of some rows.
pub(super) struct Batch {
    /// What the documents lie in, outermost first.
    parents: Vec<ArrayRef>,
    documents: ArrayRef,
    masks: Vec<(&'static str, ArrayRef)>,
    tools: Option<ArrayRef>,
}

impl Batch {
    /// Number of rows.
    pub(super) fn len(&self) -> usize {
        self.documents.len()
    }

    /// The columns.
    pub(super) fn arrays(&self) -> impl Iterator<Item = &ArrayRef> {
        let masks = self.masks.iter().map(|(_, mask)| mask);
        std::iter::once(&self.documents)
            .chain(masks)
            .chain(&self.tools)
    }

    /// Bytes of the documents: what counts towards the size of a part.
    pub(super) fn size_bytes(&self) -> u64 {
        self.documents
            .to_data()
            .get_slice_memory_size()
            .map_or(0, |bytes| bytes as u64)
    }

    /// The document in a row. Ids have to be below `num_ids`.
    pub(super) fn content(
        &self,
        row: usize,
        choice: &Choice,
        num_ids: u64,
    ) -> Result<Content, RecordProblem> {
        let null = || RecordProblem::NullText {
            field: choice.field.clone(),
        };
        let column = &self.documents;
        let is_null = |column: &ArrayRef| row >= column.len() || column.is_null(row);
        if self.parents.iter().any(is_null) || is_null(column) {
            return Err(null());
        }
        match choice.kind {
            Kind::Text => text(column, row)
                .unwrap_or_else(|| Err(null()))
                .map(Content::Text),
            Kind::Ids => {
                let list = list(column, row).ok_or_else(null)?;
                let mut masks = Masks::default();
                for (name, column) in &self.masks {
                    if let Some(slot) = masks.slot(name)
                        && !is_null(column)
                    {
                        *slot = Some(mask(name, column, row)?);
                    }
                }
                ids(&list, masks, num_ids)
            }
            Kind::Messages => Ok(Content::Messages {
                messages: nested::json(column, row).ok_or_else(null)?,
                tools: match &self.tools {
                    Some(tools) if !is_null(tools) => {
                        Some(nested::json(tools, row).ok_or_else(null)?)
                    }
                    _ => None,
                },
            }),
        }
    }
}

fn ids(list: &ArrayRef, masks: Masks, num_ids: u64) -> Result<Content, RecordProblem> {
    if list.null_count() > 0
        && let Some(position) = (0..list.len()).find(|&position| list.is_null(position))
    {
        return Err(RecordProblem::NullId { position });
    }
    match list.data_type() {
        DataType::Int8 => values::<Int8Type>(list, masks, num_ids),
        DataType::Int16 => values::<Int16Type>(list, masks, num_ids),
        DataType::Int32 => values::<Int32Type>(list, masks, num_ids),
        DataType::Int64 => values::<Int64Type>(list, masks, num_ids),
        DataType::UInt8 => values::<UInt8Type>(list, masks, num_ids),
        DataType::UInt16 => values::<UInt16Type>(list, masks, num_ids),
        DataType::UInt32 => values::<UInt32Type>(list, masks, num_ids),
        _ => values::<UInt64Type>(list, masks, num_ids),
    }
}

fn values<T: ArrowPrimitiveType>(
    list: &ArrayRef,
    masks: Masks,
    num_ids: u64,
) -> Result<Content, RecordProblem>
where
    T::Native: Into<i128> + Copy,
{
    let ids = list.as_primitive_opt::<T>().map(|list| list.values());
    let ids = ids.map(|ids| &**ids).unwrap_or_default();
    masks.apply(ids.iter().map(|&id| id.into()), num_ids)
}

/// The values of a mask in a row.
fn mask(name: &'static str, column: &ArrayRef, row: usize) -> Result<Vec<i64>, RecordProblem> {
    fn of<T: ArrowPrimitiveType>(list: &ArrayRef, to: impl Fn(T::Native) -> i64) -> Vec<i64> {
        let list = list.as_primitive_opt::<T>();
        list.map_or_else(Vec::new, |list| {
            list.values().iter().map(|&value| to(value)).collect()
        })
    }
    let list = list(column, row).unwrap_or_else(|| column.slice(0, 0));
    if let Some(position) = (0..list.len()).find(|&position| list.is_null(position)) {
        return Err(RecordProblem::MaskNull {
            mask: name,
            position,
        });
    }
    Ok(match list.data_type() {
        DataType::Boolean => list.as_boolean().values().iter().map(i64::from).collect(),
        DataType::Int8 => of::<Int8Type>(&list, i64::from),
        DataType::Int16 => of::<Int16Type>(&list, i64::from),
        DataType::Int32 => of::<Int32Type>(&list, i64::from),
        DataType::Int64 => of::<Int64Type>(&list, |value| value),
        DataType::UInt8 => of::<UInt8Type>(&list, i64::from),
        DataType::UInt16 => of::<UInt16Type>(&list, i64::from),
        DataType::UInt32 => of::<UInt32Type>(&list, i64::from),
        DataType::UInt64 => {
            of::<UInt64Type>(&list, |value| i64::try_from(value).unwrap_or(i64::MAX))
        }
        DataType::Float32 => of::<Float32Type>(&list, |value| whole(f64::from(value))),
        _ => of::<Float64Type>(&list, whole),
    })
}
