//! Everything that a program needs to compute: backends, profiles and kernels, found and put together.

use halite_hal::{Device, DeviceInfo, Discovery, ErrorKind, Layer, Registry, driver, select_layers};
use halite_ops::lower::KernelVariant;
use halite_ops::{Catalog, DType, Engine};
use halite_profiles::{DeviceFacts, Profile, ProfileSet, SearchPath};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// The environment variable that names layers around every device.
pub const LAYERS_VARIABLE: &str = "HALITE_LAYERS";

/// Why a session cannot be made, or a device not be opened.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A device, a backend or a plugin.
    #[error(transparent)]
    Hal(#[from] halite_hal::Error),
    /// A profile; boxed, because it carries locations and suggestions.
    #[error(transparent)]
    Profile(Box<halite_profiles::Error>),
    /// An operation or an engine.
    #[error(transparent)]
    Ops(#[from] halite_ops::Error),
}

impl From<halite_profiles::Error> for Error {
    fn from(error: halite_profiles::Error) -> Self {
        Self::Profile(Box::new(error))
    }
}

impl Error {
    /// Whether the caller's input is at fault (a name, a file, a setting), rather than a device.
    pub fn is_usage(&self) -> bool {
        match self {
            Self::Hal(error) => matches!(
                error.kind(),
                ErrorKind::InvalidArgument
                    | ErrorKind::Unavailable
                    | ErrorKind::BadFormat
                    | ErrorKind::AbiMismatch
                    | ErrorKind::Unsupported
            ),
            Self::Profile(_) => true,
            Self::Ops(error) => error.is_usage(),
        }
    }
}

/// What a [`Session`] is made of; every part has a default.
#[derive(Default)]
pub struct SessionBuilder {
    #[cfg(feature = "npu")]
    plugins: Vec<PathBuf>,
    profiles: Option<SearchPath>,
    backends: Vec<Arc<dyn driver::Backend>>,
    layers: Vec<Arc<dyn Layer>>,
    variants: Vec<KernelVariant>,
    ignores_environment: bool,
}

impl SessionBuilder {
    /// Leaves the environment aside: no variable `HALITE_*` and no profile of this user has an effect. Plugins beside
    /// the executable are found all the same.
    #[must_use]
    pub fn without_environment(mut self) -> Self {
        self.ignores_environment = true;
        self
    }

    /// Loads these NPU plugins instead of searching for some.
    #[cfg(feature = "npu")]
    #[must_use]
    pub fn plugins(mut self, files: impl IntoIterator<Item = PathBuf>) -> Self {
        self.plugins.extend(files);
        self
    }

    /// Looks for profiles here, instead of where the environment says.
    #[must_use]
    pub fn profiles(mut self, path: SearchPath) -> Self {
        self.profiles = Some(path);
        self
    }

    /// Adds a backend beside those of this crate.
    #[must_use]
    pub fn backend(mut self, backend: Arc<dyn driver::Backend>) -> Self {
        self.backends.push(backend);
        self
    }

    /// Makes a layer known beside those of [`layers`](crate::layers), so that `HALITE_LAYERS` can name it.
    #[must_use]
    pub fn layer(mut self, layer: Arc<dyn Layer>) -> Self {
        self.layers.push(layer);
        self
    }

    /// Adds a kernel variant: of an operation of one's own, or one more for an operation of Halite's.
    #[must_use]
    pub fn kernel(mut self, variant: KernelVariant) -> Self {
        self.variants.push(variant);
        self
    }

    /// Registers the backends and reads the profiles. Opens no device.
    ///
    /// # Errors
    /// A plugin that was named and is none, a damaged profile, a wrong setting in the environment.
    pub fn build(self) -> Result<Session, Error> {
        let mut registry = Registry::new();
        #[cfg(feature = "cpu")]
        {
            use halite_cpu::{CpuBackend, CpuConfig};
            let config = if self.ignores_environment { CpuConfig::default() } else { CpuConfig::from_env()? };
            registry.register(Arc::new(CpuBackend::new(config)))?;
        }
        #[cfg(feature = "npu")]
        let npu = Arc::new(npu_backend(self.plugins, self.ignores_environment)?);
        #[cfg(feature = "npu")]
        registry.register(npu.clone())?;
        #[cfg(feature = "opencl")]
        {
            let backend = halite_opencl::OpenClBackend::new();
            let ignoring = self.ignores_environment;
            registry.register(Arc::new(if ignoring { backend.ignoring_environment() } else { backend }))?;
        }
        #[cfg(feature = "cuda")]
        {
            let backend = halite_cuda::CudaBackend::new();
            let ignoring = self.ignores_environment;
            registry.register(Arc::new(if ignoring { backend.ignoring_environment() } else { backend }))?;
        }
        for backend in self.backends {
            registry.register(backend)?;
        }
        if let Some(list) = setting(LAYERS_VARIABLE, self.ignores_environment) {
            let known: Vec<_> = halite_layers::all().into_iter().chain(self.layers).collect();
            for layer in select_layers(&list.to_string_lossy(), &known)? {
                registry.add_layer(layer);
            }
        }
        let mut catalog = Catalog::builtin();
        for variant in self.variants {
            catalog.register(variant)?;
        }
        let path = match self.profiles {
            Some(path) => path,
            None if self.ignores_environment => SearchPath::builtin_only(),
            None => SearchPath::from_env(),
        };
        let profiles = ProfileSet::load(&path)?;
        let profile_folder = path.user_folder().map(Path::to_owned);
        Ok(Session {
            registry: Arc::new(registry),
            #[cfg(feature = "npu")]
            npu,
            profiles,
            catalog,
            profile_folder,
            fallback: Mutex::default(),
        })
    }
}

/// A variable's value, unless it is empty or the environment is to be left aside.
fn setting(variable: &str, ignored: bool) -> Option<OsString> {
    if ignored { None } else { std::env::var_os(variable).filter(|value| !value.is_empty()) }
}

#[cfg(feature = "npu")]
fn npu_backend(plugins: Vec<PathBuf>, ignores_environment: bool) -> Result<halite_npu::NpuBackend, Error> {
    let setting = |variable| setting(variable, ignores_environment);
    let named = !plugins.is_empty() || setting(halite_npu::PATH_VARIABLE).is_some();
    let mut backend = match <[PathBuf; 1]>::try_from(plugins) {
        Ok([file]) => halite_npu::NpuBackend::with_plugin(file),
        Err(none) if none.is_empty() => halite_npu::NpuBackend::new(),
        Err(several) => {
            // A folder would be searched; a plugin that was named must be a file.
            for file in &several {
                halite_npu::NpuBackend::with_plugin(file).plugins()?;
            }
            let list = std::env::join_paths(&several).map_err(|error| {
                halite_hal::Error::invalid(format!("plugin paths cannot be listed: {error}"))
            })?;
            halite_npu::NpuBackend::with_search_path(list)
        }
    };
    if ignores_environment {
        backend = backend.without_environment();
    }
    if named {
        // What the user named must be there; what was merely searched for may be absent.
        backend.plugins()?;
    }
    if setting(halite_npu::OPTIONS_VARIABLE).is_some() {
        // Options that no device takes are a mistake. Without a device there is nobody to judge them.
        match driver::Backend::probe(&backend) {
            Err(error) if *error.kind() != ErrorKind::Unavailable => return Err(error.into()),
            _ => {}
        }
    }
    Ok(backend)
}

/// The devices of this machine, ready to be opened as engines.
///
/// 1. [`Session::new`] registers every backend of this build and reads the profiles.
/// 2. [`discover`](Self::discover) lists the devices.
/// 3. [`open`](Self::open) gives an [`Engine`], which makes and computes tensors.
///
/// Every method may be called from any thread.
pub struct Session {
    registry: Arc<Registry>,
    /// The backend of that name in the registry, for what only it can tell.
    #[cfg(feature = "npu")]
    npu: Arc<halite_npu::NpuBackend>,
    profiles: ProfileSet,
    catalog: Catalog,
    profile_folder: Option<PathBuf>,
    /// The CPU's engine, which other engines fall back to.
    fallback: Mutex<Option<Engine>>,
}

impl Session {
    /// A session with the defaults and the settings of the environment.
    ///
    /// # Errors
    /// As [`SessionBuilder::build`].
    pub fn new() -> Result<Self, Error> {
        Self::builder().build()
    }

    /// For a session with parts of one's own.
    pub fn builder() -> SessionBuilder {
        SessionBuilder::default()
    }

    /// Every device that is there, and why other backends have none.
    pub fn discover(&self) -> Discovery {
        self.registry.probe()
    }

    /// The backends and layers that devices are opened by.
    pub fn registry(&self) -> &Arc<Registry> {
        &self.registry
    }

    /// The backend `npu`, as it stands in the registry.
    #[cfg(feature = "npu")]
    pub fn npu(&self) -> &Arc<halite_npu::NpuBackend> {
        &self.npu
    }

    /// The profiles that were read.
    pub fn profiles(&self) -> &ProfileSet {
        &self.profiles
    }

    /// Where this user's profiles lie, whether the folder exists or not; `None` where the platform names none.
    pub fn profile_folder(&self) -> Option<&Path> {
        self.profile_folder.as_deref()
    }

    /// The kernel variants to choose from.
    pub fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    /// The profile that matches a device best.
    ///
    /// # Errors
    /// When none matches, or it names an operation or a kernel variant that is not there.
    pub fn profile_of(&self, info: &DeviceInfo) -> Result<Arc<Profile>, Error> {
        let profile = self.profiles.select(&DeviceFacts::from(info))?;
        self.catalog.check(&profile, info)?;
        Ok(profile)
    }

    /// Opens a device, inside the layers of `HALITE_LAYERS`: `cpu`, `npu:0`, or `auto` for the one whose profile
    /// promises the highest f32 rate (a device without such a figure comes last, and the emulator with the CPU's
    /// arithmetic behind it never counts).
    ///
    /// # Errors
    /// When there is no such device, or it does not open.
    pub fn open_device(&self, name: &str) -> Result<Device, Error> {
        if name != "auto" {
            return Ok(self.registry.open(name)?);
        }
        let rank = |info: &DeviceInfo| {
            let profile = self.profile_of(info).ok();
            let rate = profile.and_then(|profile| profile.peak_rate(DType::F32)).unwrap_or(0.0);
            let emulated = info.has_feature("emulated");
            if emulated { 0 } else { (rate as u64).saturating_add(1) }
        };
        Ok(self.registry.open_best(rank)?)
    }

    /// Opens a device with the profile that matches it best.
    ///
    /// # Errors
    /// As [`open_device`](Self::open_device), when no profile matches, or when the CPU, which computes what the device
    /// has no kernel for, is there and does not open.
    pub fn open(&self, name: &str) -> Result<Engine, Error> {
        let device = self.open_device(name)?;
        let profile = self.profile_of(device.info())?;
        let fallback = if device.id().backend == "cpu" { None } else { self.fallback_engine()? };
        Ok(Engine::new(device, profile, self.catalog.clone(), fallback)?)
    }

    /// The CPU's engine, if this program has that backend; opened on first use.
    fn fallback_engine(&self) -> Result<Option<Engine>, Error> {
        let mut fallback = self.fallback.lock().unwrap_or_else(PoisonError::into_inner);
        if fallback.is_none() {
            *fallback = match self.open("cpu") {
                Ok(engine) => Some(engine),
                Err(Error::Hal(error))
                    if matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::InvalidArgument) =>
                {
                    None
                }
                Err(error) => return Err(error),
            };
        }
        Ok(fallback.clone())
    }
}
