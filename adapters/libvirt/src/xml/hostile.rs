//! Definitions that somebody made to hurt: they are refused or read harmlessly, never a panic, and
//! nothing of them gets into what we write.

use model::DiskFormat;

use super::{DomainXml, Fenced, FencedDisk, fenced};

fn vm(inside: &str) -> String {
    format!(
        "<domain><name>a</name><uuid>3b2f1c7e-27f1-4a5d-9a43-5ad2f9f6a001</uuid>\
         <memory unit='MiB'>1</memory><vcpu>1</vcpu>\
         <os><type arch='x86_64' machine='pc'>hvm</type></os>{inside}</domain>"
    )
}

#[test]
fn entities_and_doctypes_are_refused() {
    let laughs = "<!DOCTYPE d [<!ENTITY a 'ha'><!ENTITY b '&a;&a;'>]>";
    for text in [
        format!("{laughs}{}", vm("")),
        vm("<title>&b;</title>"),
        format!("<!DOCTYPE d SYSTEM 'file:///etc/passwd'>{}", vm("")),
    ] {
        assert!(DomainXml::parse(&text).is_err(), "{text}");
    }
}

#[test]
fn depth_count_and_size_are_limited() {
    let deep = vm(&format!("{}{}", "<a>".repeat(100), "</a>".repeat(100)));
    let many = vm(&"<a/>".repeat(250_000));
    let large = vm(&format!("<title>{}</title>", "x".repeat(5 << 20)));
    for text in [deep, many, large] {
        assert!(DomainXml::parse(&text).is_err(), "{} bytes", text.len());
    }
}

#[test]
fn what_is_not_a_vm_is_refused() {
    for text in [
        "",
        "nonsense",
        "<network><name>a</name></network>",
        "<domain/>",
        "<domain><name>a</name><uuid>not one</uuid></domain>",
        &vm("").replace("<vcpu>1</vcpu>", "<vcpu>-1</vcpu>"),
        &vm("").replace(">1</memory>", ">99999999999999999999</memory>"),
        &vm("").replace("unit='MiB'>1<", "unit='TiB'>99999999999<"),
        &vm("").replace("unit='MiB'", "unit='parsec'"),
    ] {
        assert!(DomainXml::parse(text).is_err(), "{text:?}");
    }
}

#[test]
fn addresses_that_no_bus_has_are_none() {
    for address in ["bus='0x1ff'", "slot='0x20'", "function='8'", "domain='nine'", "bus='-1'"] {
        let text = vm(&format!(
            "<devices><disk type='file'><source file='/a'/><target dev='vda' bus='virtio'/>\
             <address type='pci' {address}/></disk></devices>"
        ));
        assert_eq!(DomainXml::parse(&text).unwrap().disks[0].address, None, "{address}");
    }
}

#[test]
fn a_placeholders_note_that_is_not_quite_ours_makes_the_vm_foreign() {
    let note = |attributes: &str, inside: &str| {
        let text = vm(&format!(
            "<metadata><c:placeholder xmlns:c='https://causeway.dev/ns/1' {attributes}>{inside}\
             </c:placeholder></metadata>"
        ));
        DomainXml::parse(&text).unwrap().ours
    };
    assert!(note("migration='web1-1' epoch='3' state='held'", "").is_some());
    for (attributes, inside) in [
        ("migration='../x' epoch='3' state='held'", ""),
        ("migration='web1-1' epoch='-3' state='held'", ""),
        ("migration='web1-1' epoch='3' state='free'", ""),
        ("migration='web1-1' epoch='3'", ""),
        ("migration='web1-1' epoch='3' state='held'", "<mark migration='web1-1'/>"),
    ] {
        assert_eq!(note(attributes, inside), None, "{attributes} {inside}");
    }
    let elsewhere = vm("<metadata><placeholder xmlns='https://example.org' migration='web1-1' \
                        epoch='3' state='held'/></metadata>");
    assert_eq!(DomainXml::parse(&elsewhere).unwrap().ours, None);
}

#[test]
fn nothing_breaks_out_of_a_fenced_definition() {
    let name = "x&lt;/name&gt;&lt;devices&gt;&apos;&quot;../..";
    let domain = DomainXml::parse(&vm("").replace("<name>a<", &format!("<name>{name}<"))).unwrap();
    let disks = [FencedDisk {
        target: "vda'/><disk".to_owned(),
        path: "/srv/a' <b>&.img".to_owned(),
        format: DiskFormat::Raw,
    }];
    let text = fenced(&Fenced { domain: &domain, id: "7", disks: &disks }).unwrap();
    let again = DomainXml::parse(&text).unwrap();
    assert_eq!(again.name, domain.name);
    assert_eq!(again.disks.len(), 1);
    let nowhere = again.disks[0].source.path().unwrap();
    assert!(nowhere.starts_with("/FENCED/by-causeway/x__name"), "{nowhere}");
    assert_eq!(again.fenced.unwrap().disks, disks);

    let control = DomainXml { name: "a\u{1}".to_owned(), ..domain };
    assert!(fenced(&Fenced { domain: &control, id: "7", disks: &disks }).is_err());
}
