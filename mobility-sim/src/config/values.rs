//! Values of a configuration, each refused with what it ought to be.

use std::fmt;
use std::marker::PhantomData;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use serde::de::{DeserializeSeed, Error, SeqAccess, Unexpected, Visitor};
use serde::{Deserialize as _, Deserializer};
use transfer::secure::PublicKey;
use uuid::Uuid;

const ADDRESS: &str =
    "an IP address and a port, such as 203.0.113.7:7443; host names are not looked up";

pub fn address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SocketAddr, D::Error> {
    Text::of(ADDRESS).deserialize(deserializer)
}

pub fn addresses<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<SocketAddr>, D::Error> {
    deserializer.deserialize_seq(List {
        expected: "a list: [\"10.77.1.1:16510\"]",
        each: ADDRESS,
        of: PhantomData,
    })
}

pub fn paths<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<PathBuf>, D::Error> {
    deserializer.deserialize_seq(List {
        expected: "a list: [\"/srv/templates/debian-12.raw\"]",
        each: "a path",
        of: PhantomData,
    })
}

pub fn ip<'de, D: Deserializer<'de>>(deserializer: D) -> Result<IpAddr, D::Error> {
    let expected = "an IP address, such as 10.77.1.1; host names are not looked up";
    Text::of(expected).deserialize(deserializer)
}

pub fn uuid<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Uuid, D::Error> {
    Text::of("a UUID: take what `uuidgen` prints").deserialize(deserializer)
}

pub fn key<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PublicKey, D::Error> {
    let expected = "a public key, as `causeway-mobility introduce` prints it at the other agent";
    Text::of(expected).deserialize(deserializer)
}

pub fn mib<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    deserializer.deserialize_u32(Mib)
}

/// What says itself what it ought to be.
pub fn parsed<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr<Err: fmt::Display>,
{
    let text = String::deserialize(deserializer)?;
    text.parse().map_err(D::Error::custom)
}

struct Text<T> {
    expected: &'static str,
    of: PhantomData<T>,
}

impl<T> Text<T> {
    const fn of(expected: &'static str) -> Self {
        Self { expected, of: PhantomData }
    }
}

impl<'de, T: FromStr> DeserializeSeed<'de> for Text<T> {
    type Value = T;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<T, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<T: FromStr> Visitor<'_> for Text<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.expected)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
        text.parse().map_err(|_| E::invalid_value(Unexpected::Str(text), &self))
    }
}

struct List<T> {
    expected: &'static str,
    each: &'static str,
    of: PhantomData<T>,
}

impl<'de, T: FromStr> Visitor<'de> for List<T> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.expected)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<T>, A::Error> {
        let mut all = Vec::new();
        while let Some(one) = list.next_element_seed(Text::of(self.each))? {
            all.push(one);
        }
        Ok(all)
    }
}

struct Mib;

impl Visitor<'_> for Mib {
    type Value = u32;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a whole number of MiB")
    }

    fn visit_i64<E: Error>(self, mib: i64) -> Result<u32, E> {
        u32::try_from(mib).map_err(|_| E::invalid_value(Unexpected::Signed(mib), &self))
    }
}
