//! What each site keeps of a migration for a coordinator that has lost its state directory: the plan,
//! the way into the guest, whom the roles believe. With the ledgers it is all that `recover` needs.

use std::collections::BTreeMap;

use handover::{InstallKey, VerifyingKey};
use model::SiteName;
use plan::Plan;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use zeroize::Zeroizing;

use crate::failure::{Failure, Kind};
use crate::guest::GuestLogin;
use crate::keys;
use crate::store::{Store, Stored};

/// The only layout so far.
const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
pub struct Papers {
    version: u32,
    pub plan: Plan,
    pub login: GuestLogin,
    pub created_ms: i64,
    /// How the ledgers name the installation.
    pub install: InstallKey,
    /// The public keys of both sites' roles, hexadecimal.
    keys: BTreeMap<SiteName, String>,
    /// What the agents know the coordinator by, PKCS #8, hexadecimal. At the source alone, whose
    /// administrators have the guest's memory anyway.
    coordinator: Option<String>,
}

#[derive(Debug, Error)]
pub enum PapersError {
    #[error("they are of version {0}, which this causeway does not know")]
    Version(u32),
    #[error("they cannot be read")]
    Unreadable(#[from] serde_json::Error),
    #[error("the {0} in them is none")]
    Key(&'static str),
    #[error("they hold characters that change what a terminal shows")]
    Unprintable,
}

impl Papers {
    pub fn parse(bytes: &[u8]) -> Result<Self, PapersError> {
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        let Versioned { version } = serde_json::from_slice(bytes)?;
        if version != VERSION {
            return Err(PapersError::Version(version));
        }
        let value = serde_json::from_slice(bytes)?;
        if !is_printable(&value) {
            return Err(PapersError::Unprintable);
        }
        Ok(serde_json::from_value(value)?)
    }

    /// Of the role of one of the two sites.
    pub fn public_key(&self, site: &SiteName) -> Result<VerifyingKey, PapersError> {
        let bytes = self.keys.get(site).and_then(|text| hex::decode(text).ok()?.try_into().ok());
        let key = bytes.and_then(|bytes: [u8; 32]| VerifyingKey::from_bytes(&bytes).ok());
        key.ok_or(PapersError::Key("site's key"))
    }

    pub fn coordinator_key(&self) -> Result<Option<Zeroizing<Vec<u8>>>, PapersError> {
        let bytes = self.coordinator.as_ref().map(|text| hex::decode(text).map(Zeroizing::new));
        bytes.transpose().map_err(|_| PapersError::Key("coordinator's key"))
    }
}

/// Whoever administers a site can write there what they like, and a person is to agree to what is shown:
/// nothing in it may pass for another line, or read otherwise than it is.
fn is_printable(value: &serde_json::Value) -> bool {
    use serde_json::Value;
    match value {
        Value::String(text) => plan::is_plain(text),
        Value::Array(values) => values.iter().all(is_printable),
        Value::Object(fields) => fields.iter().all(|(name, value)| match (&**name, value) {
            // Scripts may have several lines, and are shown as what they are.
            ("hooks_before" | "hooks_undo" | "gate", value) => is_script(value),
            (_, value) => is_printable(value),
        }),
        _ => true,
    }
}

fn is_script(value: &serde_json::Value) -> bool {
    use serde_json::Value;
    match value {
        Value::String(text) => is_printable(&Value::String(text.replace(['\n', '\t'], " "))),
        Value::Array(values) => values.iter().all(is_script),
        other => is_printable(other),
    }
}

/// For both sites.
pub fn draw_up(store: &Store, stored: &Stored) -> Result<engine::custody::Papers, Failure> {
    let plan = &stored.plan;
    let public = |site: &SiteName| -> Result<(SiteName, String), Failure> {
        Ok((site.clone(), hex::encode(keys::public_key(store, site)?.to_bytes())))
    };
    let mut papers = Papers {
        version: VERSION,
        plan: plan.clone(),
        login: stored.login.clone(),
        created_ms: stored.created_ms,
        install: keys::install_name(store)?,
        keys: BTreeMap::from([public(&plan.from)?, public(&plan.to)?]),
        coordinator: None,
    };
    let unwritable = |error: serde_json::Error| {
        Failure::new(Kind::Refused, "the plan cannot be written down").caused_by(&error)
    };
    // What could not be read again is not begun.
    if !is_printable(&serde_json::to_value(&papers).map_err(unwritable)?) {
        return Err(Failure::new(
            Kind::Refused,
            format!("{} has names or options that do not show as what they are", plan.id),
        )
        .hint("characters that control a terminal, that have no width or that turn what follows stand in the name of the VM, of a disk, network or pool, or in the login: rename it"));
    }
    let encode = |papers: &Papers| serde_json::to_vec(papers).map_err(unwritable);
    let destination = encode(&papers)?;
    papers.coordinator =
        keys::of_coordinator_in_full(store, &plan.id)?.map(|key| hex::encode(&*key));
    Ok(engine::custody::Papers { source: encode(&papers)?, destination })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::is_printable;

    #[test]
    fn what_is_shown_cannot_pass_for_something_else() {
        for good in ["web1", "Größe 日本", "sh -c 'a && b'"] {
            assert!(is_printable(&json!({ "plan": { "vm": [good] } })), "{good}");
        }
        let bad = ["a\nlogin  root@x", "a\tb", "\u{1b}[2K", "a\r", "\u{202e}1bew", "we\u{200b}b1"];
        for bad in bad {
            assert!(!is_printable(&json!({ "plan": { "vm": [bad] } })), "{bad:?}");
            assert!(!is_printable(&json!({ "login": { "identity": bad } })), "{bad:?}");
        }
        let hooks = |text: &str| json!({ "plan": { "options": { "hooks_before": [text] } } });
        assert!(is_printable(&hooks("sync\n\tfstrim /")));
        assert!(!is_printable(&hooks("sync\u{1b}[2K")));
    }
}
