package plane

import (
	"os"
	"runtime/debug"
)

// SaveMemory lets the heap grow by 30 % rather than twofold between two collections: a plane idles most of the time, and
// its memory counts for more than the time it takes. GOGC in the environment says otherwise.
func SaveMemory() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(30)
	}
}
