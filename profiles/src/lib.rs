//! YAML device profiles: schema, matching, inheritance.
