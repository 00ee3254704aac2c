//! Which cipher: what both processors are quick at.

use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::crypto::ring as theirs;

/// What computes AES-GCM here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Aes {
    Hardware,
    /// Guests whose CPU model is a common denominator (`qemu64`, `kvm64`) do not see the
    /// instructions that their host has.
    Software,
}

impl Aes {
    /// Of this processor. What `ring` looks at.
    pub fn here() -> Self {
        if has_instructions() { Self::Hardware } else { Self::Software }
    }
}

#[cfg(target_arch = "x86_64")]
fn has_instructions() -> bool {
    use std::arch::is_x86_feature_detected as has;
    has!("aes") && has!("pclmulqdq")
}

#[cfg(target_arch = "aarch64")]
fn has_instructions() -> bool {
    use std::arch::is_aarch64_feature_detected as has;
    has!("aes") && has!("pmull")
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
const fn has_instructions() -> bool {
    false
}

/// In hardware AES-128, which 256 bits would make a seventh slower for nothing that this data needs
/// (performance.md, section 5); in software `ChaCha20`, several times faster there. X25519 alone.
pub fn provider(aes: Aes) -> Arc<CryptoProvider> {
    let mut cipher_suites = vec![
        theirs::cipher_suite::TLS13_AES_128_GCM_SHA256,
        theirs::cipher_suite::TLS13_AES_256_GCM_SHA384,
        theirs::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
    ];
    if aes == Aes::Software {
        cipher_suites.rotate_right(1);
    }
    Arc::new(CryptoProvider {
        cipher_suites,
        kx_groups: vec![theirs::kx_group::X25519],
        ..theirs::default_provider()
    })
}
