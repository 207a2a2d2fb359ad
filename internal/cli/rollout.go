package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/util/duration"

	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/pilot/rollout"
)

func newRollout(env *Env) *cobra.Command {
	c := &cobra.Command{
		Use:   "rollout",
		Short: "How staged rollouts stand, and commands to them",
		Long: "A Rollout moves the requests of a VirtualService from one subset of a service to another, step by step, as long as those that the new\n" +
			"one serves go well: docs/traffic.md.",
	}
	c.AddCommand(newRolloutStatus(env))
	for _, v := range []struct {
		command rollout.Command
		short   string
	}{
		{rollout.Pause, "Stay at the present step"},
		{rollout.Resume, "Go on: the present step begins anew"},
		{rollout.Promote, "Give the canary everything at once"},
		{rollout.Abort, "Restore the weights from before"},
	} {
		c.AddCommand(newRolloutCommand(env, v.command, v.short))
	}
	return c
}

func newRolloutStatus(env *Env) *cobra.Command {
	var f format
	namespace := ""
	c := &cobra.Command{
		Use: "status [NAME]", Short: "How rollouts stand", Args: args(cobra.MaximumNArgs(1)),
		RunE: func(c *cobra.Command, a []string) error { return runRolloutStatus(c.Context(), env, f, namespace, a) },
	}
	addOutput(c, &f, "table", "yaml", "json")
	addNamespace(c, &namespace)
	return c
}

func runRolloutStatus(ctx context.Context, env *Env, f format, namespace string, a []string) error {
	pilot, err := env.plane(ctx, mesh.RolePilot)
	if err != nil {
		return err
	}
	var list []rollout.Status
	if err := pilot.getJSON(ctx, "/rollouts", &list); err != nil {
		return err
	}
	if len(a) > 0 {
		if namespace, err = env.namespace(ctx, namespace); err != nil {
			return err
		}
		var found []rollout.Status
		for _, s := range list {
			if s.Resource == "rollout/"+namespace+"/"+a[0] {
				found = append(found, s)
			}
		}
		if list = found; list == nil {
			return withCode(exitNotFound, fmt.Errorf("there is no Rollout %s/%s", namespace, a[0]))
		}
	}
	if f != "table" {
		return encode(env.Out, f, list)
	}
	var rows [][]string
	for _, s := range list {
		step, since := fmt.Sprintf("%d of %d", s.Step, s.Steps), ""
		if !s.Since.IsZero() && !s.Phase.Over() {
			since = duration.HumanDuration(time.Since(s.Since)) + " of " + s.Hold
		}
		served := ""
		if s.Requests > 0 {
			served = fmt.Sprintf("%.1f %% of %d", s.SuccessRate, s.Requests)
		}
		rows = append(rows, []string{strings.TrimPrefix(s.Resource, "rollout/"), string(s.Phase), step, strconv.Itoa(int(s.Weight)) + " %", since, served, s.Message})
	}
	return table(env.Out, []string{"ROLLOUT", "PHASE", "STEP", "CANARY", "FOR", "SUCCEEDED", "BECAUSE"}, rows)
}

func newRolloutCommand(env *Env, command rollout.Command, short string) *cobra.Command {
	namespace := ""
	c := &cobra.Command{
		Use: string(command) + " NAME", Short: short, Args: args(cobra.ExactArgs(1)),
		RunE: func(c *cobra.Command, a []string) error {
			return runRolloutCommand(c.Context(), env, command, namespace, a[0])
		},
	}
	addNamespace(c, &namespace)
	return c
}

func runRolloutCommand(ctx context.Context, env *Env, command rollout.Command, namespace, name string) error {
	pilot, err := env.plane(ctx, mesh.RolePilot)
	if err != nil {
		return err
	}
	if namespace, err = env.namespace(ctx, namespace); err != nil {
		return err
	}
	resp, err := pilot.do(ctx, http.MethodPost, "/rollouts/"+namespace+"/"+name+"/"+string(command), nil, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusNoContent {
		return nil
	}
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return withCode(exitUnreachable, err)
	}
	var said struct {
		Error string `json:"error"`
	}
	if err := json.Unmarshal(b, &said); err != nil {
		return fmt.Errorf("pilot: %s: %s", resp.Status, b)
	}
	if resp.StatusCode == http.StatusNotFound {
		return withCode(exitNotFound, errors.New(said.Error))
	}
	return fmt.Errorf("rollout %s/%s: %s", namespace, name, said.Error)
}
