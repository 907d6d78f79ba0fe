//! Which files can still be reached: Landlock, where the kernel has it.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible as _, PathBeneath,
    PathFd, Ruleset, RulesetAttr as _, RulesetCreated, RulesetCreatedAttr as _, RulesetStatus,
    make_bitflags,
};

use super::ConfineError;

/// The newest rules that this module was written for; kernels with older ones get what they know.
const RULES: ABI = ABI::V5;

/// Where the kernel tells of this process.
const STATUS: &str = "/proc/self";

/// What is done below a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// Files are read.
    Read,
    /// Files are appended to, and made.
    Append,
    /// A file is removed.
    Remove,
    /// This process leaves the control group there, which is removed.
    Leave,
}

impl Use {
    fn rights(self) -> BitFlags<AccessFs> {
        match self {
            Self::Read => make_bitflags!(AccessFs::{ReadFile | ReadDir}),
            Self::Append => make_bitflags!(AccessFs::{WriteFile | MakeReg}),
            Self::Remove => make_bitflags!(AccessFs::{RemoveFile}),
            Self::Leave => make_bitflags!(AccessFs::{WriteFile | RemoveDir}),
        }
    }
}

/// A directory, with all below it, that stays usable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The directory.
    pub directory: PathBuf,
    /// What for.
    pub usage: Use,
}

impl Place {
    /// The directory in which `file` lies, and the one in which it really lies when it is a link.
    pub fn around(file: &Path, usage: Use) -> impl Iterator<Item = Self> {
        let parent = |file: &Path| file.parent().map(Path::to_owned);
        let named = parent(file).map(|directory| match directory.as_os_str().is_empty() {
            true => PathBuf::from("."),
            false => directory,
        });
        let real = std::fs::canonicalize(file).ok().and_then(|file| parent(&file));
        named.into_iter().chain(real).map(move |directory| Self { directory, usage })
    }
}

/// The places that stay, as the kernel is told.
#[derive(Debug)]
pub(super) struct Files {
    /// None: the kernel does not confine.
    rules: Option<RulesetCreated>,
    places: Vec<Place>,
    /// A directory of a process has an identity only as long as it is in use.
    _status: Option<PathFd>,
}

impl Files {
    pub(super) fn new(mut places: Vec<Place>) -> Result<Self, ConfineError> {
        places.push(Place { directory: STATUS.into(), usage: Use::Read });
        places.sort_by(|one, other| one.directory.cmp(&other.directory));
        places.dedup();
        let refused =
            |error: landlock::RulesetError| ConfineError::Refused("files", error.to_string());
        let mut rules = Ruleset::default()
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(AccessFs::from_all(RULES))
            .map_err(refused)?
            // All addresses are bound by now, and no rule allows another.
            .handle_access(AccessNet::BindTcp)
            .map_err(refused)?
            .create()
            .map_err(refused)?;
        // There is no descriptor where the kernel does not confine: before 5.13, or built or started without.
        let clone = rules.try_clone().map_err(|error| ConfineError::Call("files", error))?;
        if Option::<OwnedFd>::from(clone).is_none() {
            return Ok(Self { rules: None, places, _status: None });
        }
        let open = |directory: &Path| {
            PathFd::new(directory)
                .map_err(|error| ConfineError::Place(directory.to_owned(), error.to_string()))
        };
        let status = open(Path::new(STATUS))?;
        for Place { directory, usage } in &places {
            let opened = open(directory)?;
            rules = rules.add_rule(PathBeneath::new(opened, usage.rights())).map_err(refused)?;
        }
        Ok(Self { rules: Some(rules), places, _status: Some(status) })
    }

    /// Confines the calling thread.
    pub(super) fn enter(&self) -> Result<(), ConfineError> {
        let Some(rules) = &self.rules else { return Ok(()) };
        let refused = |error: String| ConfineError::Refused("files", error);
        let rules = rules.try_clone().map_err(|error| refused(error.to_string()))?;
        let status = rules.restrict_self().map_err(|error| refused(error.to_string()))?;
        match status.ruleset {
            RulesetStatus::FullyEnforced | RulesetStatus::PartiallyEnforced => Ok(()),
            RulesetStatus::NotEnforced => Err(refused("the kernel did not enforce it".to_owned())),
        }
    }

    pub(super) fn describe(&self) -> &'static str {
        match self.rules {
            Some(_) => "its own files (Landlock)",
            None => "any file of the user (this kernel has no Landlock)",
        }
    }

    /// The first of these places that is no part of those that stay.
    pub(super) fn first_closed(&self, wanted: Vec<Place>) -> Option<Place> {
        let _ = self.rules.as_ref()?;
        wanted.into_iter().find(|Place { directory, usage }| {
            let holds =
                |place: &Place| place.usage == *usage && directory.starts_with(&place.directory);
            !self.places.iter().any(holds)
        })
    }
}
