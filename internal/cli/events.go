package cli

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"github.com/spf13/cobra"

	"github.com/composure-mesh/composure/keeper/heal"
	"github.com/composure-mesh/composure/mesh"
)

func newEvents(env *Env) *cobra.Command {
	var f format
	var watch bool
	c := &cobra.Command{
		Use:   "events",
		Short: "What the keeper has repaired since it started, and what it can't repair",
		Long: "What the keeper has repaired since it started, and what it can't repair: applications and proxies that a restart\n" +
			"of the engine or of a sandbox has left without a network. RESULT is done, the reason why it failed, or the command\n" +
			"to run. The keeper keeps the newest 512; its log has all.",
		Args: args(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error { return runEvents(c.Context(), env, f, watch) },
	}
	addOutput(c, &f, "table", "yaml", "json")
	c.Flags().BoolVarP(&watch, "watch", "w", false, "go on with what comes, one line an event (-o json: one object a line)")
	return c
}

func runEvents(ctx context.Context, env *Env, f format, watch bool) error {
	keeper, err := env.plane(ctx, mesh.RoleKeeper)
	if err != nil {
		return err
	}
	if watch {
		return watchEvents(ctx, env, keeper, f)
	}
	var list []heal.Event
	if err := keeper.getJSON(ctx, "/events", &list); err != nil {
		return err
	}
	if f != "table" {
		return encode(env.Out, f, list)
	}
	if len(list) == 0 {
		env.talk("nothing: the keeper had nothing to repair since it started")
		return nil
	}
	var rows [][]string
	for _, e := range list {
		rows = append(rows, []string{e.Time.Local().Format(time.DateTime), e.Workload, e.Container, string(e.What), e.Result, e.Why})
	}
	return table(env.Out, []string{"TIME", "WORKLOAD", "CONTAINER", "WHAT", "RESULT", "WHY"}, rows)
}

func watchEvents(ctx context.Context, env *Env, keeper *peer, f format) error {
	if f == "yaml" {
		return withCode(exitUsage, fmt.Errorf("--watch prints a line an event: want --output table or json"))
	}
	resp, err := keeper.do(ctx, http.MethodGet, "/events?watch=1", nil, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("keeper: GET /events: %s", resp.Status)
	}
	stream := bufio.NewScanner(resp.Body)
	for stream.Scan() {
		line := bytes.TrimSpace(stream.Bytes())
		if len(line) == 0 {
			continue // a sign of life
		}
		if f == "json" {
			fmt.Fprintf(env.Out, "%s\n", line)
			continue
		}
		var e heal.Event
		if err := json.Unmarshal(line, &e); err != nil {
			return fmt.Errorf("keeper: GET /events: %w", err)
		}
		fmt.Fprintf(env.Out, "%s  %s  %s %s: %s (%s)\n", e.Time.Local().Format(time.DateTime), e.Workload, e.What, e.Container, e.Result, e.Why)
	}
	if err := stream.Err(); err != nil && ctx.Err() == nil {
		return withCode(exitUnreachable, fmt.Errorf("keeper: the stream of events was cut: %w", err))
	}
	return withCode(exitUnreachable, fmt.Errorf("keeper: the stream of events has ended: did it stop?"))
}
