//! Secrets of a run that nothing may show: whatever is printed, logged or stored is looked through
//! for them, in every form in which bytes are usually written.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

/// The operator's and the coordinator's private keys.
pub struct Secrets(Vec<Secret>);

struct Secret {
    name: String,
    forms: Vec<(&'static str, Vec<u8>)>,
}

/// Of a private Ed25519 key: all that is secret in it.
const SEED: usize = 32;

/// Where it stands in PKCS #8 (RFC 8410).
const SEED_IN_PKCS8: usize = 16;

impl Secrets {
    /// Of a coordinator's state directory, and of the login into the guest.
    pub fn of(state: &Path, identity: &Path) -> Result<Self> {
        let mut secrets = vec![identity_secret(identity)?];
        let mut files: Vec<PathBuf> = vec![state.join("install.key")];
        for entry in fs::read_dir(state.join("keys"))? {
            files.push(entry?.path());
        }
        // The other half of a key is for everybody.
        files.retain(|path| path.extension().is_some_and(|extension| extension == "key"));
        for path in files {
            let bytes = fs::read(&path).with_context(|| path.display().to_string())?;
            let seed = match bytes.len() {
                SEED => &bytes[..],
                _ => bytes.get(SEED_IN_PKCS8..SEED_IN_PKCS8 + SEED).context("not a key")?,
            };
            secrets.push(Secret::new(&path.display().to_string(), seed));
        }
        Ok(Self(secrets))
    }

    /// By the files that they are in.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|secret| secret.name.as_str())
    }

    /// Fails if one of them is in `bytes`, which `what` is.
    pub fn are_not_in(&self, what: &str, bytes: &[u8]) -> Result<()> {
        for Secret { name, forms } in &self.0 {
            for (form, secret) in forms {
                let shown = bytes.windows(secret.len()).any(|window| window == secret);
                ensure!(!shown, "{what} shows the secret of {name} as {form}");
            }
        }
        Ok(())
    }

    /// Nothing in a state directory shows one, but the files that are there to keep it. Returns how
    /// many were looked through.
    pub fn are_not_stored_in(&self, state: &Path) -> Result<usize> {
        let mut looked = 0;
        for entry in fs::read_dir(state)? {
            let path = entry?.path();
            let kept = ["keys", "install.key"].iter().any(|name| path.ends_with(name));
            if kept {
                continue;
            }
            if path.is_dir() {
                looked += self.are_not_stored_in(&path)?;
            } else if path.is_file() {
                self.are_not_in(&path.display().to_string(), &fs::read(&path)?)?;
                looked += 1;
            }
        }
        Ok(looked)
    }
}

impl Secret {
    fn new(name: &str, seed: &[u8]) -> Self {
        let hex: String = seed.iter().map(|byte| format!("{byte:02x}")).collect();
        // As `Debug` and JSON write bytes.
        let list = |gap: &str| {
            let numbers: Vec<String> = seed.iter().map(u8::to_string).collect();
            numbers.join(gap).into_bytes()
        };
        let mut forms = vec![
            ("bytes", seed.to_vec()),
            ("hexadecimal", hex.clone().into_bytes()),
            ("capital hexadecimal", hex.to_uppercase().into_bytes()),
            ("a list", list(", ")),
            ("a dense list", list(",")),
        ];
        // Base64 looks different by where in a group of three its content begins.
        for before in 0..3 {
            let padded = [&[0; 3][..before], seed].concat();
            let text = base64(&padded);
            // The first characters are also of what comes before, the last of what comes after.
            let first = (before * 8).div_ceil(6);
            let last = padded.len() * 8 / 6;
            let text = text[first..last].to_owned();
            forms.push(("base64 for addresses", text.replace('+', "-").replace('/', "_").into()));
            forms.push(("base64", text.into()));
        }
        Self { name: name.to_owned(), forms }
    }
}

/// OpenSSH's file is base64 of: the public key, then, among other things, the secret followed by
/// the public key again.
fn identity_secret(path: &Path) -> Result<Secret> {
    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let body: Vec<&str> = text.lines().filter(|line| !line.starts_with('-')).collect();
    let bytes = from_base64(&body.concat());
    let kind = b"ssh-ed25519\0\0\0 ";
    let at = find(&bytes, kind).context("not an Ed25519 key of OpenSSH")? + kind.len();
    let public = &bytes[at..at + SEED];
    let last = bytes.windows(SEED).rposition(|window| window == public).unwrap_or(at);
    ensure!(last > at + SEED, "{} has no private half", path.display());
    let mut secret = Secret::new(&path.display().to_string(), &bytes[last - SEED..last]);
    // As the file has it: the lines that are of the private half alone.
    let mut begins = 0;
    for line in body {
        if begins > (at + SEED) * 8 / 6 && line.len() > 16 {
            secret.forms.push(("a line of its file", line.as_bytes().to_vec()));
        }
        begins += line.len();
    }
    Ok(secret)
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

fn base64(bytes: &[u8]) -> String {
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let byte = |at: usize| u32::from(group.get(at).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for shift in [18, 12, 6, 0].iter().take(group.len() + 1) {
            text.push(char::from(ALPHABET[(bits >> shift & 63) as usize]));
        }
    }
    text
}

fn from_base64(text: &str) -> Vec<u8> {
    let (mut bytes, mut bits, mut count) = (Vec::new(), 0_u32, 0);
    for digit in text.bytes().filter_map(|char| ALPHABET.iter().position(|one| *one == char)) {
        bits = bits << 6 | u32::try_from(digit).unwrap_or(0);
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count & 255).to_le_bytes()[0]);
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planted() -> (tempfile::TempDir, Secrets, [u8; SEED]) {
        let dir = tempfile::tempdir().unwrap();
        let identity = dir.path().join("id");
        let keygen = ["-q", "-t", "ed25519", "-N", "", "-f"];
        let made = std::process::Command::new("ssh-keygen").args(keygen).arg(&identity).status();
        assert!(made.unwrap().success());
        let seed: [u8; SEED] =
            std::array::from_fn(|n| [0x9d, 0xfb, 7, 0xee][n % 4] ^ u8::try_from(n).unwrap());
        let keys = dir.path().join("state/keys");
        fs::create_dir_all(&keys).unwrap();
        fs::write(dir.path().join("state/install.key"), [1; SEED]).unwrap();
        let pkcs8 = [&[0x30; SEED_IN_PKCS8][..], &seed, &[0x55; 35]].concat();
        fs::write(keys.join("move-1.key"), pkcs8).unwrap();
        fs::write(keys.join("site-east.pub"), [3; SEED]).unwrap();
        let secrets = Secrets::of(&dir.path().join("state"), &identity).unwrap();
        (dir, secrets, seed)
    }

    #[test]
    fn a_secret_is_found_in_whatever_form_it_is_written() {
        let (_dir, secrets, seed) = planted();
        let hex: String = seed.iter().map(|byte| format!("{byte:02x}")).collect();
        for shown in [
            seed.to_vec(),
            format!("key={hex} ").into_bytes(),
            hex.to_uppercase().into_bytes(),
            format!("Key({seed:?})").into_bytes(),
            format!("{seed:?}").replace(", ", ",").into_bytes(),
            base64(&seed).into_bytes(),
            base64(&[b"a", &seed[..], b"z"].concat()).into_bytes(),
            base64(&[b"ab", &seed[..], b"yz"].concat()).into_bytes(),
            base64(&[b"abc", &seed[..]].concat()).replace('+', "-").replace('/', "_").into_bytes(),
        ] {
            let text = String::from_utf8_lossy(&shown);
            let found = secrets.are_not_in("it", &[b"before ", &shown[..], b" after"].concat());
            assert!(found.unwrap_err().to_string().contains("move-1.key"), "{text}");
        }
        secrets.are_not_in("it", b"nothing to see").unwrap();
        secrets.are_not_in("the other half", &[3; SEED]).unwrap();
        assert_eq!(secrets.names().count(), 3);
    }

    #[test]
    fn the_login_is_found_as_its_file_and_as_its_bytes_and_its_public_half_is_not() {
        let (dir, secrets, _) = planted();
        let text = fs::read_to_string(dir.path().join("id")).unwrap();
        assert!(secrets.are_not_in("the file", text.as_bytes()).is_err());
        let body: String = text.lines().filter(|line| !line.starts_with('-')).collect();
        assert!(secrets.are_not_in("its bytes", &from_base64(&body)).is_err());
        let public = fs::read(dir.path().join("id.pub")).unwrap();
        secrets.are_not_in("its public half", &public).unwrap();
    }

    #[test]
    fn what_is_stored_is_looked_through_but_for_the_keys_themselves() {
        let (dir, secrets, seed) = planted();
        let state = dir.path().join("state");
        fs::write(state.join("causeway.db"), "rows").unwrap();
        fs::create_dir(state.join("receipts")).unwrap();
        fs::write(state.join("receipts/1.json"), "{}").unwrap();
        assert_eq!(secrets.are_not_stored_in(&state).unwrap(), 2);
        fs::write(state.join("receipts/1.json"), base64(&seed)).unwrap();
        assert!(secrets.are_not_stored_in(&state).is_err());
    }
}
