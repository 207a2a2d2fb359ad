// Package compose puts a compose project into the mesh: it loads the project as Docker Compose does, plans what
// becomes of each service, and writes an override file that gives every service a sandbox and a proxy. The
// user's own files are read, never written.
//
// The way is Load → Source.Plan → Inject → Result.Write, and Uninject back. All but Load, Write and Uninject are
// pure functions of their inputs: the same project and Config give the same bytes, and no engine is asked.
//
// Two models of the project are in use. Decisions are made on the resolved one (interpolated, all profiles);
// values that move from a service to its sandbox are copied from the raw one, so that ${…} stays a variable.
// Before anything is written, project and override are loaded together and compared with the project alone:
// whatever changed without being meant to makes Inject refuse.
package compose
