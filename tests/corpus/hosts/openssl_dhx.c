/* CVE-2026-42770: a peer's Diffie-Hellman key is checked against the subgroup that the peer itself names. */
#include "host.h"

#include <openssl/bn.h>
#include <openssl/core_names.h>
#include <openssl/evp.h>
#include <openssl/param_build.h>

/* A key in the group of p and 2, with `q` as its order. */
static EVP_PKEY *key(const BIGNUM *p, const BIGNUM *q, unsigned long private)
{
	BN_CTX *scratch = BN_CTX_new();
	BIGNUM *g = BN_new(), *x = BN_new(), *y = BN_new();
	OSSL_PARAM_BLD *builder = OSSL_PARAM_BLD_new();
	EVP_PKEY_CTX *context = EVP_PKEY_CTX_new_from_name(NULL, "DHX", NULL);
	OSSL_PARAM *parameters;
	EVP_PKEY *made = NULL;

	BN_set_word(g, 4);
	BN_set_word(x, private);
	BN_mod_exp(y, g, x, p, scratch);
	OSSL_PARAM_BLD_push_BN(builder, OSSL_PKEY_PARAM_FFC_P, p);
	OSSL_PARAM_BLD_push_BN(builder, OSSL_PKEY_PARAM_FFC_Q, q);
	OSSL_PARAM_BLD_push_BN(builder, OSSL_PKEY_PARAM_FFC_G, g);
	OSSL_PARAM_BLD_push_BN(builder, OSSL_PKEY_PARAM_PUB_KEY, y);
	OSSL_PARAM_BLD_push_BN(builder, OSSL_PKEY_PARAM_PRIV_KEY, x);
	parameters = OSSL_PARAM_BLD_to_param(builder);
	if (EVP_PKEY_fromdata_init(context) != 1 ||
	    EVP_PKEY_fromdata(context, &made, EVP_PKEY_KEYPAIR, parameters) != 1)
		made = NULL;
	OSSL_PARAM_free(parameters);
	OSSL_PARAM_BLD_free(builder);
	EVP_PKEY_CTX_free(context);
	BN_free(g);
	BN_free(x);
	BN_free(y);
	BN_CTX_free(scratch);
	return made;
}

static int accepts(EVP_PKEY *own, EVP_PKEY *peer)
{
	EVP_PKEY_CTX *context = EVP_PKEY_CTX_new_from_pkey(NULL, own, NULL);
	int accepted = EVP_PKEY_derive_init(context) == 1 && EVP_PKEY_derive_set_peer(context, peer) == 1;

	EVP_PKEY_CTX_free(context);
	return accepted;
}

static const char *verdict(void)
{
	BIGNUM *p = BN_get_rfc3526_prime_1536(NULL), *order = BN_dup(p), *twice = BN_dup(p);
	EVP_PKEY *own, *friend, *stranger;
	const char *result;

	BN_rshift1(order, p); /* p is 2 q + 1, and 4 has the order q */
	BN_sub_word(twice, 1);
	own = key(p, order, 1234567891);
	friend = key(p, order, 1234567893);
	stranger = key(p, twice, 1234567893);
	if (own == NULL || friend == NULL || stranger == NULL || !accepts(own, friend))
		result = "ODD: a good peer is not accepted";
	else
		result = accepts(own, stranger) ? "VULNERABLE" : "FIXED";
	EVP_PKEY_free(own);
	EVP_PKEY_free(friend);
	EVP_PKEY_free(stranger);
	BN_free(p);
	BN_free(order);
	BN_free(twice);
	return result;
}
