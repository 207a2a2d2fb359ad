// Package traffic drives real proxies with rules as users write them: YAML is decoded, compiled to snapshots, built into
// tables, and requests go through engines to small applications, all in one process. The cases are in testdata, to be
// read by users too: rules, and requests with what becomes of them.
package traffic
