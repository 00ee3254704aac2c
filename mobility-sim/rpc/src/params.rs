//! Typed parameters: named values, of which a migration has at most [`PARAMS_MAX`].
//!
//! Those that libvirt 9.0.0 knows for a migration are constants with their type
//! ([`Name`]): reading one gives a value of that type or nothing. [`Params::check`] refuses all
//! others, as a real destination does.

mod name;

use std::fmt;

use thiserror::Error;

pub use name::{Kind, Name, Number, Text, known};

use crate::xdr::{Reader, TEXT_MAX, Writer, XdrError};

/// `REMOTE_DOMAIN_MIGRATE_PARAM_LIST_MAX`.
pub const PARAMS_MAX: usize = 64;

/// The longest name, in bytes: `VIR_TYPED_PARAM_FIELD_LENGTH` without the NUL.
pub const FIELD_MAX: usize = 79;

/// A name's length, a type and the smallest value.
const LEAST: usize = 12;

/// Parameters in the order in which they came.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Params(Vec<Param>);

#[derive(Clone, Debug, PartialEq)]
pub struct Param {
    pub field: String,
    pub value: Value,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Int(i32),
    Uint(u32),
    Llong(i64),
    Ullong(u64),
    Double(f64),
    Boolean(bool),
    String(String),
}

/// Why parameters are refused, in libvirt's words where it has some.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ParamsError {
    #[error("parameter '{field}' not supported")]
    Unknown { field: String },

    #[error("invalid type '{found}' for parameter '{field}', expected '{expected}'")]
    Kind { field: String, found: &'static str, expected: &'static str },

    #[error("parameter '{field}' occurs multiple times")]
    Repeated { field: String },
}

/// There are [`PARAMS_MAX`] already, or the value is longer than [`TEXT_MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("more than {PARAMS_MAX} parameters, or one of more than {TEXT_MAX} bytes")]
pub struct NoRoom;

impl Params {
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    pub fn iter(&self) -> impl Iterator<Item = &Param> {
        self.0.iter()
    }

    pub const fn len(&self) -> usize {
        self.0.len()
    }

    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The value, if there is one and it has the type that belongs to the name.
    pub fn get<'a, T: FromValue<'a>>(&'a self, name: &Name<T::Type>) -> Option<T> {
        self.all(name).next()
    }

    /// All values of a name that may occur more than once.
    pub fn all<'a, T: FromValue<'a>>(&'a self, name: &Name<T::Type>) -> impl Iterator<Item = T> {
        let field = name.field;
        self.0
            .iter()
            .filter(move |param| param.field == field)
            .filter_map(|param| T::from_value(&param.value))
    }

    /// One value in the place of the first of that name, or behind all others; further ones of the
    /// name are gone.
    pub fn replace<T: IntoValue>(&mut self, name: &Name<T::Type>, value: T) -> Result<(), NoRoom> {
        let value = value.into_value();
        if value.len() > TEXT_MAX {
            return Err(NoRoom);
        }
        match self.0.iter().position(|param| param.field == name.field) {
            Some(at) => {
                self.0[at].value = value;
                let mut place = 0..;
                self.0.retain(|param| place.next() <= Some(at) || param.field != name.field);
                Ok(())
            }
            None => self.push(name.field, value),
        }
    }

    /// One more value of a name that may occur more than once.
    pub fn add<T: IntoValue>(&mut self, name: &Name<T::Type>, value: T) -> Result<(), NoRoom> {
        self.push(name.field, value.into_value())
    }

    /// All values of that name, gone from here.
    pub fn remove<T>(&mut self, name: &Name<T>) -> Vec<Value> {
        let removed = self.0.extract_if(.., |param| param.field == name.field);
        removed.map(|param| param.value).collect()
    }

    /// The values of one name are those of another from here on; whatever that had is gone.
    pub fn rename<T>(&mut self, from: &Name<T>, to: &Name<T>) {
        self.remove(to);
        for param in self.0.iter_mut().filter(|param| param.field == from.field) {
            to.field.clone_into(&mut param.field);
        }
    }

    /// Does every parameter have a name of a migration's, its type, and no twin?
    pub fn check(&self) -> Result<(), ParamsError> {
        for (at, Param { field, value }) in self.0.iter().enumerate() {
            let Some((kind, many)) = known(field) else {
                return Err(ParamsError::Unknown { field: field.clone() });
            };
            if kind != value.kind() {
                let (found, expected) = (value.kind().name(), kind.name());
                return Err(ParamsError::Kind { field: field.clone(), found, expected });
            }
            if !many && self.0[..at].iter().any(|other| other.field == *field) {
                return Err(ParamsError::Repeated { field: field.clone() });
            }
        }
        Ok(())
    }

    /// For parameters of any name.
    pub fn push(&mut self, field: &str, value: Value) -> Result<(), NoRoom> {
        if self.0.len() == PARAMS_MAX || field.len() > FIELD_MAX || value.len() > TEXT_MAX {
            return Err(NoRoom);
        }
        self.0.push(Param { field: field.to_owned(), value });
        Ok(())
    }

    pub(crate) fn read(fields: &mut Reader<'_>) -> Result<Self, XdrError> {
        fields.list("parameters", PARAMS_MAX, LEAST, Param::read).map(Self)
    }

    pub(crate) fn write(&self, out: &mut Writer) {
        out.list(&self.0, |out, param| param.write(out));
    }
}

impl Param {
    fn read(fields: &mut Reader<'_>) -> Result<Self, XdrError> {
        let field = fields.text("parameter's name", FIELD_MAX)?.to_owned();
        let what = "parameter's value";
        let value = match fields.u32("parameter's type")? {
            1 => Value::Int(fields.i32(what)?),
            2 => Value::Uint(fields.u32(what)?),
            3 => Value::Llong(fields.i64(what)?),
            4 => Value::Ullong(fields.u64(what)?),
            5 => Value::Double(fields.f64(what)?),
            6 => Value::Boolean(fields.bool(what)?),
            7 => Value::String(fields.text(what, TEXT_MAX)?.to_owned()),
            found => return Err(XdrError::Value { what: "parameter's type", found }),
        };
        Ok(Self { field, value })
    }

    fn write(&self, out: &mut Writer) {
        out.text(&self.field);
        out.u32(self.value.kind().number());
        match &self.value {
            Value::Int(value) => out.i32(*value),
            Value::Uint(value) => out.u32(*value),
            Value::Llong(value) => out.i64(*value),
            Value::Ullong(value) => out.u64(*value),
            Value::Double(value) => out.f64(*value),
            Value::Boolean(value) => out.bool(*value),
            Value::String(value) => out.text(value),
        }
    }
}

impl Value {
    const fn kind(&self) -> Kind {
        match self {
            Self::Int(_) => Kind::Int,
            Self::Uint(_) => Kind::Uint,
            Self::Llong(_) => Kind::Llong,
            Self::Ullong(_) => Kind::Ullong,
            Self::Double(_) => Kind::Double,
            Self::Boolean(_) => Kind::Boolean,
            Self::String(_) => Kind::String,
        }
    }

    const fn len(&self) -> usize {
        match self {
            Self::String(text) => text.len(),
            _ => 0,
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Int(value) => value.fmt(f),
            Self::Uint(value) => value.fmt(f),
            Self::Llong(value) => value.fmt(f),
            Self::Ullong(value) => value.fmt(f),
            Self::Double(value) => value.fmt(f),
            Self::Boolean(value) => value.fmt(f),
            Self::String(value) => value.fmt(f),
        }
    }
}

/// What a value of a type of parameter is read as.
pub trait FromValue<'a>: Sized {
    /// The type of the name.
    type Type;

    fn from_value(value: &'a Value) -> Option<Self>;
}

/// What becomes a value of a type of parameter.
pub trait IntoValue {
    /// The type of the name.
    type Type;

    fn into_value(self) -> Value;
}

impl<'a> FromValue<'a> for &'a str {
    type Type = Text;

    fn from_value(value: &'a Value) -> Option<Self> {
        match value {
            Value::String(text) => Some(text),
            _ => None,
        }
    }
}

impl IntoValue for &str {
    type Type = Text;

    fn into_value(self) -> Value {
        Value::String(self.to_owned())
    }
}

impl IntoValue for String {
    type Type = Text;

    fn into_value(self) -> Value {
        Value::String(self)
    }
}

macro_rules! numbers {
    ($($type:ty: $variant:ident),*) => {$(
        impl FromValue<'_> for $type {
            type Type = Number<Self>;

            fn from_value(value: &Value) -> Option<Self> {
                match value {
                    Value::$variant(number) => Some(*number),
                    _ => None,
                }
            }
        }

        impl IntoValue for $type {
            type Type = Number<Self>;

            fn into_value(self) -> Value {
                Value::$variant(self)
            }
        }
    )*};
}

numbers!(i32: Int, u64: Ullong);

#[cfg(test)]
mod tests;
