package docker

import (
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/events"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/go-connections/nat"
	"github.com/google/go-cmp/cmp"

	"github.com/composure-mesh/composure/keeper"
)

const testID = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

func TestConvert(t *testing.T) {
	in := container.InspectResponse{
		ContainerJSONBase: &container.ContainerJSONBase{
			ID: testID, Name: "/shop-web-1", Created: "2026-11-24T12:00:00.5Z",
			State: &container.State{
				Status: "running", Running: true, Pid: 42, Health: &container.Health{Status: "healthy"},
				Error: "No such container: x", StartedAt: "2026-11-24T12:00:01.5Z",
			},
			HostConfig: &container.HostConfig{NetworkMode: "container:5a0d"},
		},
		Config: &container.Config{
			Labels: map[string]string{"a": "b"}, StopSignal: "SIGQUIT",
			ExposedPorts: nat.PortSet{"9080/tcp": {}, "53/udp": {}, "80/tcp": {}},
		},
		NetworkSettings: &container.NetworkSettings{
			Networks: map[string]*network.EndpointSettings{
				"b":     {NetworkID: "nb", IPAddress: "10.0.0.2", GlobalIPv6Address: "fd00::2", Aliases: []string{"web", "shop-web-1", testID[:12]}, DNSNames: []string{"web", "www", testID[:12]}},
				"a":     {NetworkID: "na", IPAddress: "10.1.0.2"},
				"never": {},
				"nil":   nil,
			},
		},
	}
	in.NetworkSettings.Ports = nat.PortMap{
		"80/tcp": {{HostIP: "0.0.0.0", HostPort: "8080"}, {HostIP: "::", HostPort: "8080"}, {HostIP: "127.0.0.1", HostPort: "8081"}, {HostIP: "::1", HostPort: "8082"}},
		"53/udp": {{HostIP: "0.0.0.0", HostPort: "53"}}, "9080/tcp": nil,
	}
	want := keeper.Container{
		ID: testID, Name: "shop-web-1", Labels: map[string]string{"a": "b"}, Running: true, Health: "healthy", PID: 42, StopSignal: 3,
		Endpoints: []keeper.Endpoint{
			{NetworkID: "na", IPv4: "10.1.0.2"},
			{NetworkID: "nb", IPv4: "10.0.0.2", IPv6: "fd00::2", Aliases: []string{"shop-web-1", "web", "www"}},
		},
		Exposed:   []uint16{80, 9080},
		Published: map[uint16][]string{80: {"127.0.0.1:8081", "8080", "[::1]:8082"}},
		State:     "running", Error: "No such container: x", StartedAt: time.Date(2026, 11, 24, 12, 0, 1, 5e8, time.UTC), NetworkOf: "5a0d",
		RestartPolicy: "no",
	}
	got := convert(in)
	if got.Created.Unix() != 1795521600 {
		t.Errorf("created %s", got.Created)
	}
	got.Created = want.Created
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("convert (-want +got):\n%s", diff)
	}
	for name, change := range map[string]func(*container.State){
		"restarting": func(s *container.State) { s.Restarting = true },
		"exited":     func(s *container.State) { s.Running = false },
	} {
		state := *in.State
		change(&state)
		other := in
		base := *in.ContainerJSONBase
		base.State, other.ContainerJSONBase = &state, &base
		if convert(other).Running {
			t.Errorf("%s counts as running", name)
		}
	}
	in.State.Paused, in.State.Health = true, nil
	if got := convert(in); !got.Running || got.Health != container.Unhealthy {
		t.Errorf("a paused container: running %v, health %q; want it running and unhealthy", got.Running, got.Health)
	}
}

func TestSignalNumber(t *testing.T) {
	for name, want := range map[string]int{"": 15, "SIGTERM": 15, "quit": 3, "SIGINT": 2, "37": 37, "nonsense": 15} {
		if got := signalNumber(name); got != want {
			t.Errorf("signalNumber(%q) = %d, want %d", name, got, want)
		}
	}
}

func TestEvent(t *testing.T) {
	actor := func(attrs map[string]string) events.Actor { return events.Actor{ID: "c1", Attributes: attrs} }
	for name, test := range map[string]struct {
		in   events.Message
		want keeper.Event
		ok   bool
	}{
		"start":             {events.Message{Type: "container", Action: "start", Actor: actor(nil)}, keeper.Event{Container: "c1", Change: keeper.Started}, true},
		"die":               {events.Message{Type: "container", Action: "die", Actor: actor(nil)}, keeper.Event{Container: "c1", Change: keeper.Ended}, true},
		"destroy":           {events.Message{Type: "container", Action: "destroy", Actor: actor(nil)}, keeper.Event{Container: "c1"}, true},
		"kill":              {events.Message{Type: "container", Action: "kill", Actor: actor(map[string]string{"signal": "15"})}, keeper.Event{Container: "c1", Signal: 15, Labels: map[string]string{"signal": "15"}}, true},
		"health":            {events.Message{Type: "container", Action: "health_status: healthy", Actor: actor(nil)}, keeper.Event{Container: "c1"}, true},
		"connect":           {events.Message{Type: "network", Action: "connect", Actor: events.Actor{ID: "n", Attributes: map[string]string{"container": "c2"}}}, keeper.Event{Container: "c2"}, true},
		"network of nobody": {events.Message{Type: "network", Action: "connect", Actor: events.Actor{ID: "n"}}, keeper.Event{}, false},
	} {
		if test.in.Type == "container" {
			test.in.TimeNano, test.want.Time = 15e8, time.Unix(1, 5e8)
		}
		got, ok := event(test.in)
		if diff := cmp.Diff(test.want, got); diff != "" || ok != test.ok {
			t.Errorf("%s: ok %v (-want +got):\n%s", name, ok, diff)
		}
	}
}

func TestHealth(t *testing.T) {
	for status, want := range map[string]string{"Up 3 seconds (healthy)": "(healthy)", "Up 2 minutes": "", "Up 1 second (health: starting)": "(health: starting)", "Exited (0) 3 seconds ago": ""} {
		if got := health(status); got != want {
			t.Errorf("health(%q) = %q, want %q", status, got, want)
		}
	}
}

func TestConvertNetwork(t *testing.T) {
	for name, test := range map[string]struct {
		driver string
		config network.IPAMConfig
		want   []string
	}{
		"as given":            {"bridge", network.IPAMConfig{Subnet: "10.0.0.0/24", Gateway: "10.0.0.254"}, []string{"10.0.0.254"}},
		"with a prefix":       {"bridge", network.IPAMConfig{Subnet: "fd00::/64", Gateway: "fd00::1/64"}, []string{"fd00::1"}},
		"first of the subnet": {"bridge", network.IPAMConfig{Subnet: "10.0.0.0/24"}, []string{"10.0.0.1"}},
		"first of the range":  {"bridge", network.IPAMConfig{Subnet: "10.0.0.0/24", IPRange: "10.0.0.128/25"}, []string{"10.0.0.128"}},
		"range at the start":  {"bridge", network.IPAMConfig{Subnet: "10.0.0.0/24", IPRange: "10.0.0.0/25"}, []string{"10.0.0.1"}},
		"no bridge":           {"macvlan", network.IPAMConfig{Subnet: "10.0.0.0/24"}, nil},
	} {
		n := convertNetwork(network.Inspect{Name: "n", ID: "i", Driver: test.driver, IPAM: network.IPAM{Config: []network.IPAMConfig{test.config, {Subnet: "garbage"}}}})
		if diff := cmp.Diff(test.want, n.Gateways); diff != "" || len(n.Subnets) != 1 || n.Subnets[0] != test.config.Subnet {
			t.Errorf("%s: %+v (-want +got):\n%s", name, n, diff)
		}
	}
}
