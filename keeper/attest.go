package keeper

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/composure-mesh/composure/internal/limit"
	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/mesh/labels"
)

// Caller is who is at the other end of a connection.
type Caller struct {
	Container string // full id
	Role      mesh.Role
	Workload  string // "" for a plane
	Identity  string // SPIFFE ID
}

// Attestor tells who has connected. ErrUnknown is the error for a caller that is nobody of this mesh; any other
// means that it can't be told now.
type Attestor interface {
	// Accepted is called when a connection arrives; Attest gets its result.
	Accepted(conn net.Conn) Evidence
	Attest(ctx context.Context, e Evidence) (Caller, error)
}

// Evidence is what an Attestor takes down about a new connection.
type Evidence struct {
	conn  *net.UnixConn
	start string
}

// Errors of an Attestor.
var (
	// ErrUnknown marks a caller that gets nothing.
	ErrUnknown = errors.New("not a process of this mesh")
	// ErrTooMany marks a caller that asks too often.
	ErrTooMany = errors.New("too many requests of one container")
)

// A container attests when it starts and every few hours; while citadel is away it tries again every one or two
// seconds.
const (
	attestRate  = 1 // a second
	attestBurst = 20
)

// cgroupAttestor goes from the connection's process by its cgroup to the container, and by the container's
// labels to the mesh's idea of it.
type cgroupAttestor struct {
	scope    Scope
	engine   Engine
	procRoot string
	limits   *limit.PerCaller
}

func newCgroupAttestor(s Scope, e Engine, procRoot string) *cgroupAttestor {
	return &cgroupAttestor{scope: s, engine: e, procRoot: procRoot, limits: &limit.PerCaller{Rate: attestRate, Burst: attestBurst}}
}

func (a *cgroupAttestor) Accepted(conn net.Conn) Evidence {
	u, ok := conn.(*net.UnixConn)
	if !ok {
		return Evidence{}
	}
	return Evidence{conn: u, start: acceptedStart(u, a.procRoot)}
}

func (a *cgroupAttestor) Attest(ctx context.Context, e Evidence) (Caller, error) {
	if e.conn == nil {
		return Caller{}, fmt.Errorf("%w: not a unix socket", ErrUnknown)
	}
	p, err := peerOf(e.conn, a.procRoot, e.start)
	if err != nil {
		return Caller{}, fmt.Errorf("%w: %w", ErrUnknown, err)
	}
	defer p.close()
	return a.attest(ctx, p)
}

func (a *cgroupAttestor) attest(ctx context.Context, p *peer) (Caller, error) {
	cgroup, err := readCgroup(a.procRoot, p.pid)
	if err != nil {
		return Caller{}, fmt.Errorf("%w: %w", ErrUnknown, err)
	}
	// What was read is about the caller only if the caller is still there.
	if exited, err := p.exited(); err != nil || exited {
		return Caller{}, errors.Join(fmt.Errorf("%w: process %d has ended", ErrUnknown, p.pid), err)
	}
	id, err := containerID(cgroup)
	if err != nil {
		return Caller{}, fmt.Errorf("%w: process %d: %w", ErrUnknown, p.pid, err)
	}
	if !a.limits.Allow(id, time.Now()) {
		return Caller{}, fmt.Errorf("%w: container %.12s", ErrTooMany, id)
	}
	c, err := a.engine.Inspect(ctx, id)
	if errors.Is(err, ErrNotFound) {
		return Caller{}, fmt.Errorf("%w: %w", ErrUnknown, err)
	}
	if err != nil {
		return Caller{}, err
	}
	if err := a.inside(cgroup, c); err != nil {
		return Caller{}, fmt.Errorf("%w: container %s: %w", ErrUnknown, c.Name, err)
	}
	who, err := a.identify(c, p.uid)
	if err != nil {
		return Caller{}, fmt.Errorf("%w: container %s: %w", ErrUnknown, c.Name, err)
	}
	return who, nil
}

// inside checks that the container's main process is in the very cgroup of the caller, so that a cgroup which
// somebody has named after a container counts for nothing.
func (a *cgroupAttestor) inside(cgroup string, c Container) error {
	if !c.Running || c.PID == 0 {
		return errors.New("it does not run")
	}
	main, err := readCgroup(a.procRoot, c.PID)
	if err != nil {
		return fmt.Errorf("its main process: %w", err)
	}
	if main != cgroup {
		return errors.New("the process is not in the container's own cgroup")
	}
	return nil
}

// identify is the identity that the container's labels give it; the process must be of the role's user.
func (a *cgroupAttestor) identify(c Container, uid int) (Caller, error) {
	if m := c.Labels[labels.Mesh]; m != a.scope.Mesh {
		return Caller{}, fmt.Errorf("label %s is %q, want %q", labels.Mesh, m, a.scope.Mesh)
	}
	who := Caller{Container: c.ID, Role: mesh.Role(c.Labels[labels.Role])}
	want, ok := roleUsers[who.Role]
	if !ok {
		return Caller{}, fmt.Errorf("label %s is %q, which has no identity", labels.Role, who.Role)
	}
	if uid != want {
		return Caller{}, fmt.Errorf("the process has user id %d, want %d for role %s", uid, want, who.Role)
	}
	switch who.Role {
	case mesh.RoleProxy, mesh.RoleGateway:
		id, err := workloadIdentity(a.scope.TrustDomain, c.Labels)
		if err != nil {
			return Caller{}, err
		}
		if who.Workload = c.Labels[labels.Workload]; who.Workload == "" {
			return Caller{}, fmt.Errorf("label %s is missing", labels.Workload)
		}
		who.Identity = id.id.String()
	default:
		id, err := mesh.PlaneID(a.scope.TrustDomain, who.Role)
		if err != nil {
			return Caller{}, err
		}
		who.Identity = id.String()
	}
	return who, nil
}

// roleUsers are the roles that have an identity, and the user that each runs as.
var roleUsers = map[mesh.Role]int{
	mesh.RoleProxy: mesh.UIDProxy, mesh.RoleGateway: mesh.UIDProxy,
	mesh.RolePilot: mesh.UIDPilot, mesh.RoleCitadel: mesh.UIDCitadel, mesh.RoleMixer: mesh.UIDMixer,
}
