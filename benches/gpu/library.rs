//! Functions of shared libraries that are opened at run time.

/// Declares a struct of C functions with `open`, which looks for a library under several names and takes all of them.
macro_rules! library {
    ($(#[$doc:meta])* $library:ident { $($name:ident: fn($($argument:ty),* $(,)?) $(-> $result:ty)?;)* }) => {
        $(#[$doc])*
        #[allow(non_snake_case)]
        pub(crate) struct $library {
            $(pub(crate) $name: unsafe extern "system" fn($($argument),*) $(-> $result)?,)*
            // Holds the code of the functions above.
            _shared: libloading::Library,
        }

        impl $library {
            /// Opens the first library of these names that is there.
            pub(crate) fn open(names: &[&str]) -> $crate::Outcome<Self> {
                let mut failures = Vec::new();
                for name in names {
                    // SAFETY: opening runs the initialisers of a library that the user has installed under this name.
                    let shared = match unsafe { libloading::Library::new(name) } {
                        Ok(shared) => shared,
                        Err(error) => {
                            failures.push(format!("{name} ({error})"));
                            continue;
                        }
                    };
                    // SAFETY: the declarations repeat those of the library's own header for these names.
                    return Ok(unsafe {
                        Self {
                            $($name: *shared.get(concat!(stringify!($name), "\0").as_bytes())?,)*
                            _shared: shared,
                        }
                    });
                }
                Err($crate::failure(failures.join("; ")))
            }
        }
    };
}

pub(crate) use library;
