//! Debian packages: which ones an image needs, and their archives.
//!
//! Two look-ups answer everything: the names that could be needed, and what the package lists say of them. What was
//! found is kept beside the archives, so that the second run asks nobody.

use crate::error::{Error, Result};
use crate::images::{digest, tree};
use crate::process;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A package as the package lists have it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Package {
    pub(crate) name: String,
    pub(crate) version: String,
    /// File name of its archive.
    pub(crate) archive: String,
    pub(crate) sha256: String,
    /// Each group is satisfied by any one of its alternatives.
    depends: Vec<Vec<String>>,
    provides: Vec<String>,
}

/// Packages that others depend on and a container has no use for: their work is done by install scripts that never
/// run here, or by the host.
const NEVER: &[&str] = &[
    "adduser",
    "cdebconf",
    "debconf*",
    "dpkg",
    "init-system-helpers",
    "iproute2",
    "libjson-perl",
    "libllvm*",
    "libpam-modules*",
    "libpam-runtime",
    "libperl*",
    "locales*",
    "login",
    "logrotate",
    "lsb-base",
    "mailcap",
    "media-types",
    "mime-support",
    "mount",
    "netbase",
    "passwd",
    "perl*",
    "postgresql-client-common",
    "postgresql-common*",
    "sensible-utils",
    "ssl-cert",
    "systemd*",
    "sysvinit-utils",
    "tzdata*",
    "ucf",
    "util-linux*",
];

fn never(name: &str) -> bool {
    NEVER.iter().any(|pattern| tree::matches(pattern, name))
}

/// Reads the stanzas of `apt-cache show`. One without an archive (a virtual or installed-only package) is left out.
pub(crate) fn parse(lists: &str) -> Vec<Package> {
    lists.split("\n\n").filter_map(stanza).collect()
}

fn stanza(text: &str) -> Option<Package> {
    let mut fields: HashMap<&str, String> = HashMap::new();
    let mut last = "";
    for line in text.lines() {
        if line.starts_with([' ', '\t']) {
            if let Some(value) = fields.get_mut(last) {
                value.push_str(line);
            }
        } else if let Some((key, value)) = line.split_once(':') {
            last = key;
            fields.insert(key, value.trim().to_owned());
        }
    }
    let groups = |key: &str| -> Vec<Vec<String>> {
        let value = fields.get(key).map(String::as_str).unwrap_or_default();
        value.split(',').map(|group| group.split('|').filter_map(bare).collect::<Vec<_>>()).collect()
    };
    let mut depends = groups("Pre-Depends");
    depends.extend(groups("Depends"));
    depends.retain(|group| !group.is_empty());
    Some(Package {
        name: fields.get("Package")?.clone(),
        version: fields.get("Version")?.clone(),
        archive: fields.get("Filename")?.rsplit('/').next()?.to_owned(),
        sha256: fields.get("SHA256")?.clone(),
        depends,
        provides: groups("Provides").into_iter().flatten().collect(),
    })
}

/// `libc6:any (>= 2.34)` is about `libc6`.
fn bare(text: &str) -> Option<String> {
    let name = text.split(['(', '[', ':']).next()?.trim();
    (!name.is_empty()).then(|| name.to_owned())
}

/// The packages named and all they depend on, in order of name. Of alternatives the first that exists is taken, of
/// the providers of a virtual package one that is taken anyway, else the first by name; a group whose first choice
/// is never wanted is left out.
pub(crate) fn closure(roots: &[String], known: &[Package]) -> Result<Vec<Package>> {
    let mut by_name: BTreeMap<&str, &Package> = BTreeMap::new();
    for package in known {
        by_name.entry(&package.name).or_insert(package); // the first is the candidate
    }
    let mut providers: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for package in by_name.values() {
        for name in &package.provides {
            providers.entry(name).or_default().insert(&package.name);
        }
    }
    let mut taken: BTreeMap<&str, &Package> = BTreeMap::new();
    let mut waiting: VecDeque<(Vec<String>, String)> =
        roots.iter().map(|root| (vec![root.clone()], "the recipe".to_owned())).collect();
    while let Some((group, wanted_by)) = waiting.pop_front() {
        if group.first().is_some_and(|first| never(first) && !roots.contains(first)) {
            continue;
        }
        let choice = group.iter().find_map(|name| {
            let name = name.as_str();
            let real = by_name.get(name).copied();
            real.or_else(|| {
                let offers = providers.get(name)?;
                let chosen = offers.iter().find(|one| taken.contains_key(*one));
                let first = || offers.iter().find(|one| !never(one));
                by_name.get(chosen.or_else(first)?).copied()
            })
        });
        let Some(package) = choice else {
            let what = format!("no package `{}`, which {wanted_by} needs", group.join(" | "));
            let hint = "apt-get update; an image recipe names packages of Debian 12 or a current Ubuntu";
            return Err(Error::Host { what, hint: hint.into() });
        };
        if taken.insert(&package.name, package).is_none() {
            waiting.extend(package.depends.iter().map(|group| (group.clone(), package.name.clone())));
        }
    }
    Ok(taken.into_values().cloned().collect())
}

/// Where archives and what was found out about them are kept.
#[derive(Debug)]
pub(crate) struct Archives {
    folder: PathBuf,
    /// Names the distribution, so that a folder carried to another one is not believed.
    system: String,
}

impl Archives {
    /// Opens the folder, which is made when it is missing.
    pub(crate) fn open(folder: &Path, system: &str) -> Result<Self> {
        std::fs::create_dir_all(folder).map_err(Error::file("make", folder))?;
        Ok(Self { folder: folder.to_owned(), system: system.to_owned() })
    }

    /// The packages named and all they depend on, from what an earlier run kept, else from the package lists.
    pub(crate) fn resolve(&self, roots: &[String]) -> Result<Vec<Package>> {
        if roots.is_empty() {
            return Ok(Vec::new());
        }
        let question = json!([&self.system, roots, NEVER]).to_string();
        let record = self.folder.join(format!("resolved-{}.json", &digest::of(question.as_bytes())[..16]));
        if let Some(packages) = recall(&record) {
            return Ok(packages);
        }
        let packages = closure(roots, &lookup(roots)?)?;
        let kept: Vec<Value> = packages
            .iter()
            .map(|p| json!({"name": p.name, "version": p.version, "archive": p.archive, "sha256": p.sha256}))
            .collect();
        crate::files::replace(&record, format!("{:#}\n", Value::Array(kept)).as_bytes())?;
        Ok(packages)
    }

    /// Forgets which versions were found, so that the next run takes the newest ones.
    pub(crate) fn forget(&self) -> Result<()> {
        for entry in std::fs::read_dir(&self.folder).map_err(Error::file("list", &self.folder))? {
            let path = entry.map_err(Error::file("list", &self.folder))?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if name.starts_with("resolved-") {
                std::fs::remove_file(&path).map_err(Error::file("remove", &path))?;
            }
        }
        Ok(())
    }

    /// The archive of a package.
    pub(crate) fn path(&self, package: &Package) -> PathBuf {
        self.folder.join(&package.archive)
    }

    /// Downloads the archives that are missing, in one go, and checks every one against the package lists.
    pub(crate) fn fetch(&self, packages: &[Package]) -> Result<()> {
        let missing: Vec<&Package> = packages.iter().filter(|package| !self.path(package).exists()).collect();
        if !missing.is_empty() {
            eprintln!("downloading {} packages", missing.len());
            self.download(&missing)?;
        }
        for package in packages {
            let path = self.path(package);
            let found = digest::of_file(&path)?;
            if found != package.sha256 {
                std::fs::remove_file(&path).map_err(Error::file("remove", &path))?;
                let what = format!("{} was not what the package lists say, and was removed", path.display());
                return Err(Error::Host { what, hint: "run the task again".into() });
            }
        }
        Ok(())
    }

    fn download(&self, missing: &[&Package]) -> Result<()> {
        let folder = self.folder.join(format!("download-{}", std::process::id()));
        std::fs::create_dir_all(&folder).map_err(Error::file("make", &folder))?;
        let result = self.download_into(&folder, missing);
        let removed = std::fs::remove_dir_all(&folder).map_err(Error::file("remove", &folder));
        result.and(removed)
    }

    fn download_into(&self, folder: &Path, missing: &[&Package]) -> Result<()> {
        let mut command = Command::new("apt-get");
        command.args(["-qq", "-o", "APT::Sandbox::User=root", "-o", "Acquire::Retries=3", "download"]);
        command.args(missing.iter().map(|p| format!("{}={}", p.name, p.version))).current_dir(folder);
        process::stdout(&mut command)?;
        // apt writes the colon of an epoch into the name, the archive has none: the content tells which is which.
        let mut by_digest: HashMap<String, PathBuf> = HashMap::new();
        for entry in std::fs::read_dir(folder).map_err(Error::file("list", folder))? {
            let path = entry.map_err(Error::file("list", folder))?.path();
            by_digest.insert(digest::of_file(&path)?, path);
        }
        for package in missing {
            let Some(got) = by_digest.get(&package.sha256) else {
                let problem = "apt-get downloaded another archive than its lists promise";
                return Err(Error::input(format!("package {} {}", package.name, package.version), problem));
            };
            let to = self.path(package);
            std::fs::rename(got, &to).map_err(Error::file("make", &to))?;
        }
        Ok(())
    }
}

fn recall(record: &Path) -> Option<Vec<Package>> {
    let text = std::fs::read_to_string(record).ok()?;
    let kept: Vec<Value> = serde_json::from_str(&text).ok()?;
    let field = |one: &Value, key: &str| one[key].as_str().map(str::to_owned);
    kept.iter()
        .map(|one| {
            Some(Package {
                name: field(one, "name")?,
                version: field(one, "version")?,
                archive: field(one, "archive")?,
                sha256: field(one, "sha256")?,
                depends: Vec::new(),
                provides: Vec::new(),
            })
        })
        .collect()
}

/// All that the package lists say of packages that could be needed.
fn lookup(roots: &[String]) -> Result<Vec<Package>> {
    let mut names = needed(roots)?;
    // A name that is only provided by others (`libssl3` where it is called `libssl3t64`) leads nowhere by itself.
    let unreal: Vec<&String> = roots.iter().filter(|root| !names.contains(*root)).collect();
    if !unreal.is_empty() {
        let shown = process::text(Command::new("apt-cache").arg("showpkg").args(unreal))?;
        names.extend(needed(&providers(&shown))?);
    }
    let mut show = Command::new("apt-cache");
    show.args(["show", "--no-all-versions"]).args(names.iter().filter(|name| !never(name))).args(roots);
    let lists = process::output(&mut show)?; // names of virtual packages make it fail, and print what is there
    Ok(parse(&String::from_utf8_lossy(&lists.stdout)))
}

/// Names of packages that these could need, however indirectly.
fn needed(roots: &[String]) -> Result<BTreeSet<String>> {
    if roots.is_empty() {
        return Ok(BTreeSet::new());
    }
    let mut command = Command::new("apt-cache");
    command.args(["depends", "--recurse", "--no-recommends", "--no-suggests", "--no-conflicts", "--no-breaks"]);
    command.args(["--no-replaces", "--no-enhances"]).args(roots);
    let text = process::text(&mut command).map_err(|error| Error::Host {
        what: format!("apt does not know the packages {}: {}", roots.join(", "), error.chain()),
        hint: "apt-get update".into(),
    })?;
    let heads = text.lines().filter(|line| !line.starts_with([' ', '<', '|']));
    Ok(heads.filter_map(|line| line.split(':').next()).map(str::to_owned).collect())
}

/// Who provides the packages that `apt-cache showpkg` was asked for.
fn providers(shown: &str) -> Vec<String> {
    let mut names = BTreeSet::new();
    let mut listed = false;
    for line in shown.lines() {
        if line.starts_with("Package: ") || line.starts_with("Reverse Provides:") {
            listed = line.starts_with("Reverse");
        } else if listed {
            names.extend(line.split_whitespace().next().map(str::to_owned));
        }
    }
    names.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LISTS: &str = "\
Package: web
Version: 1:2.0-1
Depends: libc6 (>= 2.34), libssl3 (>= 3.0), mail-agent | exim, iproute2,
 web-common (= 2.0)
Filename: pool/main/w/web/web_2.0-1_amd64.deb
SHA256: aa

Package: web-common
Version: 2.0
Pre-Depends: dpkg (>= 1.17)
Depends: debconf (>= 0.5) | debconf-2.0
Filename: pool/w/web-common_2.0_all.deb
SHA256: bb

Package: libc6
Version: 2.36
Depends: libgcc-s1:any
Filename: pool/libc6.deb
SHA256: cc

Package: libgcc-s1
Version: 12
Depends: libc6
Filename: pool/libgcc.deb
SHA256: dd

Package: libssl3t64
Version: 3.0
Provides: libssl3 (= 3.0), ssl-old
Filename: pool/libssl3t64.deb
SHA256: ee

Package: exim
Version: 4
Filename: pool/exim.deb
SHA256: ff

Package: installed-only
Version: 4
";

    fn names(packages: &[Package]) -> Vec<&str> {
        packages.iter().map(|package| package.name.as_str()).collect()
    }

    #[test]
    fn stanzas_are_read() {
        let packages = parse(LISTS);
        assert_eq!(names(&packages), ["web", "web-common", "libc6", "libgcc-s1", "libssl3t64", "exim"]);
        let web = &packages[0];
        assert_eq!((web.version.as_str(), web.archive.as_str()), ("1:2.0-1", "web_2.0-1_amd64.deb"));
        assert_eq!(web.depends.len(), 5, "the folded line belongs to the field: {:?}", web.depends);
        assert_eq!(web.depends[2], ["mail-agent", "exim"]);
        assert_eq!(packages[4].provides, ["libssl3", "ssl-old"]);
    }

    #[test]
    fn a_closure_is_complete_ordered_and_leaves_out_the_never_wanted() {
        let known = parse(LISTS);
        for (why, roots, want) in [
            ("virtual, alternative, cycle, never", vec!["web"], Ok("exim libc6 libgcc-s1 libssl3t64 web web-common")),
            ("a provider asked for by its own name", vec!["libssl3t64", "libssl3"], Ok("libssl3t64")),
            ("nothing", vec![], Ok("")),
            ("unknown", vec!["nix"], Err("no package `nix`, which the recipe needs")),
        ] {
            let roots: Vec<String> = roots.into_iter().map(str::to_owned).collect();
            let got = closure(&roots, &known).map(|packages| names(&packages).join(" ")).map_err(|e| e.to_string());
            assert_eq!(got.as_deref().map_err(String::as_str), want, "{why}");
        }
    }

    #[test]
    fn a_missing_dependency_names_who_needs_it() {
        let known = parse("Package: a\nVersion: 1\nDepends: gone\nFilename: a\nSHA256: a\n");
        let error = closure(&["a".into()], &known).unwrap_err();
        assert_eq!(error.to_string(), "no package `gone`, which a needs");
        assert!(error.hint().is_some());
    }

    #[test]
    fn providers_are_listed_after_their_head() {
        let shown = "Package: libssl3\nVersions: \n\nReverse Depends: \n  web,libssl3\nDependencies: \nProvides: \n\
                     Reverse Provides: \nlibssl3t64 3.0.13 (= 3.0.13)\nPackage: awk\nVersions: \nReverse Provides: \n\
                     mawk 1.3 (= )\ngawk 5 (= )\n";
        assert_eq!(providers(shown), ["gawk", "libssl3t64", "mawk"]);
        assert!(providers("").is_empty());
    }

    #[test]
    fn what_was_resolved_is_remembered() {
        let folder = crate::files::Scratch::new().unwrap();
        let archives = Archives::open(folder.path(), "test").unwrap();
        let record = folder.path().join("resolved-x.json");
        std::fs::write(&record, r#"[{"name":"a","version":"1","archive":"a.deb","sha256":"00"}]"#).unwrap();
        let packages = recall(&record).unwrap();
        assert_eq!(names(&packages), ["a"]);
        std::fs::write(&record, r#"[{"name":"a"}]"#).unwrap();
        assert_eq!(recall(&record), None, "a record of another shape is asked again");
        archives.forget().unwrap();
        assert!(!record.exists());
    }
}
