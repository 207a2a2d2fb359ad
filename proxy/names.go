package proxy

import (
	"context"
	"time"
)

// dnsRetry is how long the proxy waits before it asks the sandbox again: a sandbox that is older than this proxy may never
// lead DNS to it, and passes queries on to Docker as without a mesh.
const dnsRetry = 5 * time.Second

// serveDNS answers the application's questions for names until ctx ends. It begins when there is a snapshot; before and
// after, the sandbox passes them all on to Docker's resolver.
func (s *Server) serveDNS(ctx context.Context) error {
	select {
	case <-s.applied:
	case <-ctx.Done():
		return nil
	}
	for told := false; ctx.Err() == nil; {
		held, err := s.cfg.Capture.DNS(ctx)
		if err != nil {
			if !told && ctx.Err() == nil {
				told = true
				s.log.Warn("names that the mesh alone knows do not resolve: the sandbox does not hand over DNS; retrying", "error", err)
			}
			select {
			case <-time.After(dnsRetry):
			case <-ctx.Done():
			}
			continue
		}
		told = false
		s.log.Info("answering for the mesh's names", "dns", held.UDP.LocalAddr())
		stop := context.AfterFunc(ctx, held.Release)
		served := make(chan struct{})
		go func() {
			defer close(served)
			s.dns.Serve(held.UDP, held.TCP)
		}()
		held.Wait()
		stop()
		held.Release()
		<-served // with the last answers
		_ = held.Close()
	}
	return nil
}
