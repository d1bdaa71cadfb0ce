# What Postgate may do in Vault, and no more. With a KV version 2 mount named "secret":
#
#   vault policy write postgate config/vault-policy.hcl
#
# Version 2 has data/ between mount and path; Postgate's own configuration has not. Versions come with
# the data: metadata/ is for people, by a policy of their own.

# The secrets themselves: secret/keybuzz/smtp, secret/keybuzz/ses.
path "secret/data/keybuzz/*" {
  capabilities = ["read"]
}

# How long our token lives, and that it lives on. The policy "default" has these as well; with
# token_no_default_policy it would not be there.
path "auth/token/lookup-self" {
  capabilities = ["read"]
}

path "auth/token/renew-self" {
  capabilities = ["update"]
}
