// Package images makes the mesh's own container images out of what meshctl carries, and loads them into an
// engine that lacks them: no registry, and no version skew between meshctl and what it starts (design D15).
package images

import (
	"path"
	"strconv"

	"github.com/composure-mesh/composure/mesh"
)

// Component is one of the mesh's programs and the image around it. Every image is made from scratch: the
// program at /<name>, and the directories it needs.
type Component struct {
	Name string
	// UID owns StateDir and is the image's user; 0 for those that drop root themselves.
	UID int
}

// Components are all images of the mesh.
var Components = []Component{
	{Name: "proxy", UID: mesh.UIDProxy},
	{Name: "sandbox"},
	{Name: "keeper"},
	{Name: "pilot", UID: mesh.UIDPilot},
	{Name: "citadel", UID: mesh.UIDCitadel},
	{Name: "mixer", UID: mesh.UIDMixer},
}

// Dir is a directory of an image.
type Dir struct {
	Path string
	UID  int
	Mode int64
}

// Dirs are the directories of the component's image, parents first. A fresh volume takes over the owner of the
// directory it is mounted on, so every image that mounts the shared volume has all of its directories.
func (c Component) Dirs() []Dir {
	dirs := []Dir{{"run", 0, 0o755}, {"var", 0, 0o755}, {"var/lib", 0, 0o755}}
	if c.Name == "sandbox" {
		return dirs
	}
	dirs = append(dirs, Dir{rel(mesh.RunDir), 0, 0o755})
	for role, uid := range map[mesh.Role]int{
		mesh.RoleKeeper: mesh.UIDKeeper, mesh.RolePilot: mesh.UIDPilot,
		mesh.RoleCitadel: mesh.UIDCitadel, mesh.RoleMixer: mesh.UIDMixer,
	} {
		dirs = append(dirs, Dir{rel(mesh.Dir(role)), uid, 0o755})
	}
	return append(dirs,
		Dir{rel(path.Dir(mesh.AdminSocket)), c.UID, 0o700},
		Dir{rel(mesh.StateDir), c.UID, 0o700})
}

func rel(p string) string { return p[1:] }

func (c Component) user() string {
	if c.UID == 0 {
		return ""
	}
	return strconv.Itoa(c.UID) + ":" + strconv.Itoa(c.UID)
}
