package api

import (
	"fmt"
	"net/netip"
	"net/url"
	"regexp"
	"strings"
	"time"
)

// ListChecker is a handler that looks instances up in a list
// (https://istio.io/v1.0/docs/reference/config/policy-and-telemetry/adapters/list/).
type ListChecker struct {
	// ProviderURL is where mixer gets the list from, an entry a line; empty for Overrides alone.
	ProviderURL     string        `json:"providerUrl"`
	RefreshInterval time.Duration `json:"refreshInterval"`
	// TTL is how long a list is good for that can't be refreshed.
	TTL time.Duration `json:"ttl"`
	// CachingInterval and CachingUseCount let a proxy of Istio keep the answer. These proxies decide anew each time.
	CachingInterval time.Duration `json:"cachingInterval"`
	CachingUseCount int32         `json:"cachingUseCount"`
	// Overrides are entries beside those of the provider.
	Overrides []string `json:"overrides"`
	EntryType string   `json:"entryType" enum:"STRINGS,CASE_INSENSITIVE_STRINGS,IP_ADDRESSES,REGEX"`
	// Blacklist says that what is in the list is denied; else what is not.
	Blacklist bool `json:"blacklist"`
}

// Types of a list's entries.
const (
	ListStrings         = "STRINGS"
	ListCaseInsensitive = "CASE_INSENSITIVE_STRINGS"
	ListIPAddresses     = "IP_ADDRESSES"
	ListRegex           = "REGEX"
)

func listChecker() Adapter {
	return Adapter{
		Name: "listchecker", Templates: []string{"listentry"},
		newParams: func() any {
			return &ListChecker{
				RefreshInterval: time.Minute, TTL: 5 * time.Minute, CachingInterval: 5 * time.Minute, CachingUseCount: 10000, EntryType: ListStrings,
			}
		},
		validate: func(path Path, params any) Problems { return validateListChecker(path, params.(*ListChecker)) },
	}
}

func validateListChecker(path Path, l *ListChecker) (ps Problems) {
	if l.ProviderURL != "" {
		u, err := url.Parse(l.ProviderURL)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
			ps.invalid(path.At("providerUrl"), "want a URL of http or https, got "+describe(l.ProviderURL))
		}
		if l.RefreshInterval < time.Second {
			ps.invalid(path.At("refreshInterval"), fmt.Sprintf("want at least 1s, got %s", l.RefreshInterval))
		}
		if l.TTL < l.RefreshInterval {
			ps.invalid(path.At("ttl"), fmt.Sprintf("want at least the refreshInterval of %s, got %s", l.RefreshInterval, l.TTL))
		}
	}
	for i, entry := range l.Overrides {
		if err := CheckListEntry(l.EntryType, entry); err != nil {
			ps.invalid(path.At("overrides", i), err.Error())
		}
	}
	return ps
}

// CheckListEntry tells what is wrong with an entry of a list.
func CheckListEntry(entryType, entry string) error {
	switch entryType {
	case ListIPAddresses:
		var err error
		if strings.Contains(entry, "/") {
			_, err = netip.ParsePrefix(entry)
		} else {
			_, err = netip.ParseAddr(entry)
		}
		if err != nil {
			return fmt.Errorf("want an IP address, or a range such as 10.57.0.0/16, got %q", entry)
		}
	case ListRegex:
		if _, err := regexp.Compile(entry); err != nil {
			return fmt.Errorf("want a regular expression of RE2: %w", err)
		}
	}
	return nil
}
