use super::*;

const ED: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ";
const ECDSA: &str = concat!(
    "ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBH1z6Od1EKtFNZS3IE",
    "vIP5TLPBjALa41iknY5uG0tT/M0gPB/JBhq1t+pR8iyy4Jc2OGFmDbl49A8G283AZ0Enk="
);
const OTHER: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIA6rWI3G2sz07DnfFlrouTcysQlj2P+jpNSOEWD9OJ3X";

fn key(line: &str) -> PublicKey {
    PublicKey::from_openssh(line).unwrap()
}

fn endpoint(host: &str, port: u16) -> Endpoint {
    Endpoint { user: "root".to_owned(), host: host.to_owned(), port }
}

fn from_lines(lines: &str, host: &str, port: u16) -> Expected {
    let mut expected = Expected::default();
    expected.learn(lines, &known_hosts_name(host, port));
    expected
}

#[test]
fn a_pinned_line_or_fingerprint_trusts_that_key_and_no_other() {
    let fingerprint = key(ED).fingerprint(HashAlg::Sha256).to_string();
    for pin in [ED, &format!("{ED} a comment"), &fingerprint] {
        let expected = Expected { trusted: vec![pin.parse().unwrap()], ..Expected::default() };
        assert!(expected.judge(&endpoint("h", 22), &key(ED)).is_ok(), "{pin}");
        let error = expected.judge(&endpoint("h", 22), &key(OTHER)).unwrap_err();
        let SshError::ChangedHostKey { expected, .. } = error else { panic!("{error}") };
        assert_eq!(expected, std::slice::from_ref(&fingerprint));
    }
}

#[test]
fn nothing_pinned_means_unknown() {
    for expected in [Expected::default(), from_lines(&format!("other {ED}"), "h", 22)] {
        let error = expected.judge(&endpoint("h", 22), &key(ED)).unwrap_err();
        assert!(matches!(error, SshError::UnknownHostKey { .. }), "{error}");
    }
}

#[test]
fn text_that_is_no_key_is_refused() {
    for text in ["", "SHA256:", "SHA256:short", "SHA1:abc", "ssh-ed25519 AAAA", "yes"] {
        assert!(text.parse::<PinnedKey>().is_err(), "{text}");
    }
    let sha512 = key(ED).fingerprint(HashAlg::Sha512).to_string();
    assert!(sha512.parse::<PinnedKey>().is_err());
}

#[test]
fn names_in_known_hosts_match_as_openssh_matches_them() {
    for (names, host, port, trusted) in [
        ("web1", "web1", 22, true),
        ("web1", "WEB1", 22, true),
        ("web1", "web2", 22, false),
        // Another port is another server.
        ("web1", "web1", 2222, false),
        ("[web1]:2222", "web1", 2222, true),
        ("[web1]:2222", "web1", 22, false),
        ("a,web1,b", "web1", 22, true),
        ("web*", "web1", 22, true),
        ("w?b1", "web1", 22, true),
        ("*,!web1", "web1", 22, false),
        ("!web1,*", "web2", 22, true),
        ("web", "web1", 22, false),
        ("10.0.0.*", "10.0.0.7", 22, true),
    ] {
        let expected = from_lines(&format!("{names} {ED}"), host, port);
        let judged = expected.judge(&endpoint(host, port), &key(ED));
        assert_eq!(judged.is_ok(), trusted, "{names} for {host}:{port}");
    }
}

// The line is from `ssh-keygen -H` (OpenSSH 9.2), for [pijul.org]:2222.
#[test]
fn a_hashed_name_matches_only_its_host() {
    let line = format!("|1|feLs8M45xq9cRSkzL01GfyaY4Rs=|n9iXUET/JG/22BZiFI4zIynZpcc= {ED}");
    assert!(from_lines(&line, "pijul.org", 2222).judge(&endpoint("h", 1), &key(ED)).is_ok());
    assert!(from_lines(&line, "pijul.org", 22).judge(&endpoint("h", 1), &key(ED)).is_err());
    assert!(from_lines(&line, "pijul.com", 2222).judge(&endpoint("h", 1), &key(ED)).is_err());
}

#[test]
fn a_revoked_key_is_refused_even_if_another_line_trusts_it() {
    let expected = from_lines(&format!("h {ED}\n@revoked * {ED}"), "h", 22);
    let error = expected.judge(&endpoint("h", 22), &key(ED)).unwrap_err();
    assert!(matches!(error, SshError::RevokedHostKey { .. }), "{error}");
}

#[test]
fn a_certificate_authority_trusts_no_plain_key() {
    let expected = from_lines(&format!("@cert-authority * {ED}"), "h", 22);
    assert!(expected.judge(&endpoint("h", 22), &key(ED)).is_err());
}

#[test]
fn lines_that_are_not_understood_do_not_hide_the_others() {
    let lines =
        format!("# comment\n\nh ssh-unheard-of AAAA\ngarbage\nh\t{}\n", ED.replace(' ', "  "));
    assert!(from_lines(&lines, "h", 22).judge(&endpoint("h", 22), &key(ED)).is_ok());
}

#[test]
fn the_kind_of_a_known_key_is_asked_for_first() {
    let pinned = Expected { trusted: vec![PinnedKey::Key(key(ECDSA))], ..Expected::default() };
    let offers = pinned.offers();
    assert_eq!(offers.len(), 1);
    assert_eq!(offers[0][0], Algorithm::Ecdsa { curve: EcdsaCurve::NistP256 });
    assert!(offers[0].contains(&Algorithm::Ed25519));
}

#[test]
fn a_pattern_of_many_stars_ends() {
    assert!(!glob(&"*a".repeat(60), &"b".repeat(4000)));
    assert!(glob("a*b*c", "aXbYbZc"));
    assert!(glob("", ""));
    assert!(!glob("", "a"));
}
